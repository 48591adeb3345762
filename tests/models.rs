//! Weights on their way in (`train/import`) and out (`cargo xtask export`). The files that `torch.save` writes are read in `crates/train`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use dcu_artifact::{Array, Header, Model, Tensor};
use dcu_tests::{Finished, Project, SMALL, program};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::json;

const FIT: &str = "base:      { uses: train/fit, in: { dataset: data.train }, with: { model: mlp, widths: [16, 8], epochs: 5, batch: 32 }, label: original }";

/// The small pipeline, with a base from outside.
fn importing(source: &str) -> Project {
    assert!(SMALL.contains(FIT));
    let import = format!(
        "base: {{ uses: train/import, in: {{ dataset: data.train }}, with: {{ {source}, model: mlp, widths: [16, 8], epochs: 5, batch: 32 }} }}"
    );
    Project::new(&SMALL.replace(FIT, &import))
}

/// Brings data and base up to date.
fn run(project: &Project, more: &[&str]) -> Finished {
    project.xtask("run", &[&["--only", "data", "--only", "base"], more].concat())
}

fn model(project: &Project, more: &[&str]) -> Model {
    dcu_artifact::read(&project.artifact("base", more)).unwrap().0
}

/// A project whose base was trained, and that base.
fn trained() -> (Project, Model) {
    let project = Project::new(SMALL);
    run(&project, &[]).success();
    let model = dcu_artifact::read(&project.artifact("base#1", &[])).unwrap().0;
    (project, model)
}

fn save(path: &Path, tensors: &BTreeMap<String, Tensor>) {
    let encoded: Vec<_> = tensors.iter().map(|(name, tensor)| (name, tensor, tensor.to_bytes())).collect();
    let views =
        encoded.iter().map(|(name, tensor, bytes)| (*name, TensorView::new(tensor.dtype(), tensor.shape().to_vec(), bytes).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn weight(model: &Model, name: &str) -> Array<f32> {
    match &model.tensors[name] {
        Tensor::F32(array) => array.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_exported_holds_the_weights_alone_and_comes_back_the_same() {
    let (project, model) = trained();
    let file = project.path("weights.safetensors");
    let export = |stage: &str, more: &[&str]| {
        let mut arguments = vec![stage, "-o", file.to_str().unwrap()];
        arguments.extend(more);
        project.xtask("export", &arguments)
    };
    let told = export("base", &[]).success().stdout;
    assert!(told.contains("6 tensors"), "{told}");
    let bytes = std::fs::read(&file).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap().iter().collect::<Vec<_>>(), [(&"format".to_owned(), &"pt".to_owned())]);
    let found: BTreeMap<String, Vec<u8>> =
        SafeTensors::deserialize(&bytes).unwrap().iter().map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect();
    assert_eq!(found, model.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.to_bytes())).collect());

    // Nothing is replaced unasked; the same model gives the same bytes, by stage, instance, output or artifact.
    let error = export("base", &[]).failure();
    assert!(error.contains("exists already") && error.contains("--force"), "{error}");
    for stage in ["base", "base#1", "base.model"] {
        export(stage, &["--force"]).success();
        assert_eq!(std::fs::read(&file).unwrap(), bytes, "{stage}");
    }
    let mut command = program("xtask");
    command.arg("export").arg(project.artifact("base#1", &[])).arg("-o").arg(&file).arg("--force");
    Finished::of(&mut command).success();
    assert_eq!(std::fs::read(&file).unwrap(), bytes);

    let other = importing(&format!("path: {}", file.display()));
    run(&other, &[]).success();
    let imported = self::model(&other, &[]);
    assert_eq!((imported.tensors, imported.facts), (model.tensors, model.facts));
}

#[test]
fn an_export_that_cannot_be_says_why() {
    let (project, _) = trained();
    let file = project.path("weights.safetensors");
    let refused = |stage: &[&str], more: &[&str], expected: &[&str]| {
        let error = project.xtask("export", &[stage, &["-o", file.to_str().unwrap()], more].concat()).failure();
        expected.iter().for_each(|expected| assert!(error.contains(expected), "`{expected}` is not in:\n{error}"));
        assert!(!file.exists());
    };
    refused(&["data"], &[], &["`data` makes no model", "`base`, `offline`, `modular`, `retrain`"]);
    refused(&["modular"], &[], &["`modular#1` is not up to date", "cargo xtask run"]);
    refused(&["base"], &["--set", "seeds=[1, 2]"], &["makes 2 models", "choose one of `base#1`, `base#2`"]);
    refused(&["bsae"], &[], &["did you mean `base`?"]);
    refused(&[], &[], &["say which stage"]);
    let artifact = project.artifact("data.train", &[]);
    let mut command = program("xtask");
    let error = Finished::of(command.arg("export").arg(artifact).arg("-o").arg(&file)).failure();
    assert!(error.contains("dataset/1") && error.contains("model/1"), "{error}");
}

#[test]
fn a_head_for_other_classes_is_refused_kept_in_part_or_made_new() {
    let (_, model) = trained();
    let project = importing("path: weights.safetensors");
    // Twelve outputs: those of the ten digits from the second on, between two others.
    let mut tensors = model.tensors.clone();
    let wider = |array: &Array<f32>| {
        let mut shape = array.shape.clone();
        shape[0] = 12;
        let other = vec![9.0; array.row_len()];
        Tensor::F32(Array::new(shape, [&other[..], &array.data, &other].concat()))
    };
    for name in ["linear3.weight", "linear3.bias"] {
        tensors.insert(name.into(), wider(&weight(&model, name)));
    }
    save(&project.path("weights.safetensors"), &tensors);
    let error = run(&project, &[]).failure();
    for expected in ["`linear3`, is for 12 classes, the dataset has 10", "head: keep", "head: new"] {
        assert!(error.contains(expected), "`{expected}` is not in:\n{error}");
    }

    let keep = |outputs: &str| ["--set".to_owned(), "base.head=keep".into(), "--set".into(), format!("base.outputs={outputs}")];
    let with = |settings: &[String]| run(&project, &settings.iter().map(String::as_str).collect::<Vec<_>>());
    let right = keep("[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]");
    with(&right).success();
    assert_eq!(self::model(&project, &right.each_ref().map(String::as_str)).tensors, model.tensors);
    assert!(with(&keep("[1, 2]")).failure().contains("names 2 outputs, the dataset has 10 classes"));
    assert!(with(&keep("[1, 2, 3, 4, 5, 6, 7, 8, 9, 12]")).failure().contains("names 12, but its head has 12 outputs"));
    assert!(with(&keep("[1, 2, 3, 4, 5, 6, 7, 8, 9, 1]")).failure().contains("`outputs` names 1 twice"));
    assert!(run(&project, &["--set", "base.outputs=[1]"]).failure().contains("`head: keep`"));

    let new = ["--set", "base.head=new"];
    let told = run(&project, &new).success().stderr;
    assert!(told.contains("is not trained"), "{told}");
    let fresh = self::model(&project, &new);
    assert_eq!((fresh.tensors.len(), &fresh.tensors["linear2.weight"]), (model.tensors.len(), &model.tensors["linear2.weight"]));
    let head = weight(&fresh, "linear3.weight");
    assert_eq!(head.shape, [10, 8]);
    assert!(head.data.iter().all(|value| *value != 9.0) && head.data != weight(&model, "linear3.weight").data);
    // A network without its head can be given one, and nothing else.
    for name in ["linear3.weight", "linear3.bias"] {
        tensors.remove(name);
    }
    let headless = importing("path: weights.safetensors");
    save(&headless.path("weights.safetensors"), &tensors);
    assert!(run(&headless, &[]).failure().contains("`linear3.weight` is missing"));
    let told = run(&headless, &new).success().stderr;
    assert!(told.contains("it has no head, `linear3`; a new one for 10 classes"), "{told}");
    assert_eq!(self::model(&headless, &new).tensors, fresh.tensors);
    // It varies with the seed that the stage is given, and with nothing else.
    let other = [&new[..], &["--set", "base.seed=5"]].concat();
    run(&project, &other).success();
    assert_ne!(weight(&self::model(&project, &other), "linear3.weight").data, head.data);
    std::fs::remove_dir_all(project.store()).unwrap();
    run(&project, &[&new[..], &["--set", "seeds=[7, 8]"]].concat()).success();
    assert_eq!(self::model(&project, &[&new[..], &["--set", "seeds=[7, 8]"]].concat()).tensors, fresh.tensors);
}

#[test]
#[cfg(unix)]
fn weights_that_are_no_file_are_refused_without_waiting() {
    let project = importing("path: pipe");
    assert!(std::process::Command::new("mkfifo").arg(project.path("pipe")).status().unwrap().success());
    let pipe = format!("base.path={}", project.path("pipe").display());
    for setting in [pipe.as_str(), "base.path=/dev/zero", "base.path=."] {
        let error = run(&project, &["--set", setting]).failure();
        assert!(error.contains("it is no plain file"), "{setting}: {error}");
    }
}

#[test]
fn images_that_are_prepared_otherwise_than_the_weights_want_are_refused_with_the_settings_that_help() {
    let (_, model) = trained();
    let project = importing("path: weights.safetensors");
    save(&project.path("weights.safetensors"), &model.tensors);
    let error = run(&project, &["--set", "base.normalise=imagenet", "--set", "base.size=[28, 28]"]).failure();
    for expected in [
        "--set data.channels=3",
        "--set data.normalise=given --set \"data.mean=[0.485, 0.456, 0.406]\" --set \"data.std=[0.229, 0.224, 0.225]\"",
        "images of 28 x 28, the dataset has 32 x 32",
        "--set \"data.resize=[28, 28]\"",
    ] {
        assert!(error.contains(expected), "`{expected}` is not in:\n{error}");
    }
    let given = ["--set", "base.normalise=given", "--set", "base.mean=[0.25]", "--set", "base.std=[0.5]"];
    assert!(run(&project, &given).failure().contains("data.mean=[0.25]"));
    let prepared = ["--set", "data.normalise=given", "--set", "data.mean=[0.25]", "--set", "data.std=[0.5]"];
    run(&project, &[&given[..], &prepared].concat()).success();
    assert!(run(&project, &["--set", "base.normalise=given"]).failure().contains("`normalise: given` needs `mean`"));
    // The recipe is for other images.
    let error = run(&project, &["--set", "base.crop=32"]).failure();
    assert!(error.contains("`crop` is 32, but images are 32 x 32"), "{error}");
    // What would be passed over without a word.
    for (setting, name) in [("base.mean=[0.25]", "mean"), ("base.std=[0.5]", "std"), ("data.mean=[0.25]", "mean")] {
        let error = run(&project, &["--set", setting]).failure();
        assert!(error.contains(&format!("`{name}` counts with `normalise: given` alone")), "{setting}: {error}");
    }
}

/// A hub with one model, which answers what is asked for a file of it.
fn serve(files: BTreeMap<String, Vec<u8>>, asked: Arc<Mutex<Vec<String>>>) -> String {
    const COMMIT: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let lines: Vec<String> = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1)) else { continue };
            asked.lock().unwrap().push(path.to_owned());
            let is_one_byte = lines.iter().any(|line| line.eq_ignore_ascii_case("range: bytes=0-0"));
            let is_known = |revision: &str| revision == "main" || revision == COMMIT;
            let revision = path.strip_prefix("/api/models/someone/mlp/revision/").filter(|revision| is_known(revision));
            let file =
                path.strip_prefix("/someone/mlp/resolve/").and_then(|rest| rest.split_once('/')).filter(|(revision, _)| is_known(revision));
            let (head, body) = match (revision, file.and_then(|(_, file)| files.get(file))) {
                (Some(_), _) => {
                    let siblings: Vec<_> = files.keys().map(|name| json!({ "rfilename": name })).collect();
                    (
                        "200 OK\r\nContent-Type: application/json\r\n".to_owned(),
                        json!({ "sha": COMMIT, "siblings": siblings }).to_string().into_bytes(),
                    )
                }
                (None, Some(bytes)) if is_one_byte => {
                    let head = format!(
                        "206 Partial Content\r\nETag: \"{COMMIT}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes 0-0/{}\r\n",
                        bytes.len()
                    );
                    (head, bytes[..1].to_vec())
                }
                (None, Some(bytes)) => (format!("200 OK\r\nETag: \"{COMMIT}\"\r\nX-Repo-Commit: {COMMIT}\r\n"), bytes.clone()),
                (None, None) => ("404 Not Found\r\n".to_owned(), Vec::new()),
            };
            let head = format!("HTTP/1.1 {head}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = (&stream).write_all(head.as_bytes()).and_then(|()| (&stream).write_all(&body));
        }
    });
    address
}

#[test]
fn weights_of_the_hub_are_downloaded_once_and_their_revision_is_pinned() {
    let (trained, model) = trained();
    let file = trained.path("weights.safetensors");
    trained.xtask("export", &["base", "-o", file.to_str().unwrap()]).success();
    let bytes = std::fs::read(&file).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let files = BTreeMap::from([
        ("README.md".to_owned(), b"# A model".to_vec()),
        ("pytorch_model.bin".to_owned(), bytes.clone()),
        ("old/other.pth".to_owned(), bytes),
    ]);
    let endpoint = serve(files, Arc::clone(&asked));
    let project = importing("repo: someone/mlp");
    let run = |endpoint: &str, more: &[&str], offline: &str| {
        let mut command = project.command("run", &[&["--only", "data", "--only", "base"], more].concat());
        for name in [
            "HF_TOKEN",
            "HF_TOKEN_PATH",
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "http_proxy",
            "https_proxy",
            "ALL_PROXY",
            "all_proxy",
        ] {
            command.env_remove(name);
        }
        Finished::of(command.env("HF_HOME", project.path("hf")).env("HF_ENDPOINT", endpoint).env("HF_HUB_OFFLINE", offline))
    };
    assert_eq!(run(&endpoint, &[], "0").success().ran(), ["data", "base"]);
    let snapshot = project.path("hf/hub/models--someone--mlp/snapshots").join("a".repeat(40));
    assert!(snapshot.join("pytorch_model.bin").is_file() && !snapshot.join("README.md").exists());
    let first = asked.lock().unwrap().clone();
    assert!(first.iter().filter(|path| path.contains("/resolve/")).all(|path| path.contains(&"a".repeat(40))), "{first:?}");

    // Nothing new: nothing to do, with the hub or without.
    assert_eq!(run(&endpoint, &[], "0").success().cached(), ["data", "base"]);
    assert_eq!(run("http://127.0.0.1:9", &[], "1").success().cached(), ["data", "base"]);
    let path = project.store();
    let stored =
        dcu_tests::artifacts(&path).into_keys().find(|name| Header::read(&path.join(name)).is_ok_and(|header| header.schema == "model/1"));
    let (imported, header) = dcu_artifact::read::<Model>(&path.join(stored.unwrap())).unwrap();
    assert_eq!(imported.tensors, model.tensors);
    assert!(header.provenance.externals.contains_key("someone/mlp"), "{:?}", header.provenance);

    assert_eq!(run(&endpoint, &["--set", "base.file=old/other.pth"], "0").success().ran(), ["base"]);
    let error = run(&endpoint, &["--set", "base.file=missing.pth"], "0").failure();
    assert!(error.contains("has no file `missing.pth`") && error.contains("`old/other.pth`, `pytorch_model.bin`"), "{error}");
    for (setting, expected) in
        [("base.file=../../secret", "no file inside"), ("base.repo=../etc", "no model of the hub"), ("base.path=a.pth", "not both")]
    {
        let error = run(&endpoint, &["--set", setting], "0").failure();
        assert!(error.contains(expected), "{setting}: {error}");
    }
    let error = run("http://127.0.0.1:9", &["--set", "base.repo=someone/else"], "0").failure();
    assert!(error.contains("cannot get `someone/else` at `main` from the hub") && error.contains("`path`"), "{error}");
}
