//! Models for others: a plain state dict in safetensors, which PyTorch loads as it is.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use dcu_artifact::{Model, Payload as _, replace_file};
use safetensors::tensor::TensorView;

use crate::session::Session;

/// The model that a stage of a pipeline has made.
pub(crate) fn of_pipeline(session: &Session, name: &str) -> anyhow::Result<PathBuf> {
    let (selected, only) = session.plan.select_output(name)?;
    let mut models = Vec::new();
    for &index in &selected {
        let instance = &session.plan.instances[index];
        let outputs = instance.outputs.iter().filter(|output| only.is_none_or(|only| only == output.name));
        models.extend(outputs.filter(|output| output.schema == Model::SCHEMA).map(|output| (index, output.name.as_str())));
    }
    let pipeline = session.plan.pipeline.document.file.display();
    match models.as_slice() {
        [] => {
            let mut makers: Vec<String> = session
                .plan
                .instances
                .iter()
                .filter(|instance| instance.outputs.iter().any(|output| output.schema == Model::SCHEMA))
                .map(|instance| format!("`{}`", instance.stage))
                .collect();
            makers.dedup();
            bail!("`{name}` makes no model\n  help: these stages do: {}", makers.join(", "))
        }
        &[(index, output)] => {
            let (_, known) = session.states();
            match &known[index] {
                Some(stored) => Ok(stored.path(output)),
                None => bail!("`{}` is not up to date\n  help: run `cargo xtask run {pipeline}` first", session.plan.instances[index].name),
            }
        }
        several => {
            let names: Vec<String> = several.iter().map(|&(index, _)| format!("`{}`", session.plan.instances[index].name)).collect();
            bail!("`{name}` makes {} models\n  help: choose one of {}", several.len(), names.join(", "))
        }
    }
}

/// Writes the tensors of a model, and nothing else, to a file of its own. The bytes depend on the model alone.
pub(crate) fn write(artifact: &Path, output: &Path, force: bool) -> anyhow::Result<()> {
    if !force && output.symlink_metadata().is_ok() {
        bail!("`{}` exists already\n  help: give another name, or `--force` to replace it", output.display());
    }
    let (model, _) = dcu_artifact::read::<Model>(artifact).map_err(|error| {
        let remedy = error.remedy();
        anyhow::anyhow!("{error}\n  help: {remedy}")
    })?;
    let bytes: Vec<Vec<u8>> = model.tensors.values().map(dcu_artifact::Tensor::to_bytes).collect();
    let views = model
        .tensors
        .iter()
        .zip(&bytes)
        .map(|((name, tensor), bytes)| Ok((name.as_str(), TensorView::new(tensor.dtype(), tensor.shape().to_vec(), bytes)?)));
    let views = views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    // What transformers and others look for before they read a file.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let plain = safetensors::serialize(views, Some(metadata)).context("cannot write the model as safetensors")?;
    replace_file(output, &plain)?;
    let values: usize = model.tensors.values().map(|tensor| tensor.shape().iter().product::<usize>()).sum();
    println!("{}: {} tensors with {values} values, under PyTorch's names", output.display(), model.tensors.len());
    Ok(())
}
