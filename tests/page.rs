//! What the report's page promises: well-formed, whole, of itself alone, and the same bytes again.

use std::path::{Path, PathBuf};

use dcu_artifact::Request;
use dcu_tests::{Finished, Project, SMALL};

fn pipeline() -> String {
    let page = "  page: { uses: report/html, in: { metrics: [evaluate], request: [request], retain: [reduced] }, gather: seeds }\n";
    SMALL.replace("label: original", "label: the first + only") + page
}

/// The page that the closing lines of a run name.
fn named(run: &Finished) -> PathBuf {
    PathBuf::from(run.stdout.lines().find_map(|line| line.strip_prefix("page: ")).unwrap_or_else(|| panic!("no page: {}", run.stdout)))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// The page as XML: what HTML does not close is closed.
fn as_xml(page: &str) -> String {
    let close = |(place, part): (usize, &str)| {
        let is_void = ["meta ", "img "].iter().any(|name| part.starts_with(name));
        let part = if is_void { part.replacen('>', "/>", 1) } else { part.to_owned() };
        if place == 0 { part } else { format!("<{part}") }
    };
    page.split('<').enumerate().map(close).collect()
}

#[test]
fn a_page_is_whole_and_of_itself_alone() {
    let project = Project::new(&pipeline());
    let run = project.xtask("run", &[]).success();
    let path = named(&run);
    assert_eq!(path, project.store().join("reports/small/page.html"));
    let page = read(&path);
    let xml = as_xml(&page);
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let tree = roxmltree::Document::parse_with_options(&xml, options).unwrap_or_else(|error| panic!("{error}\n{page}"));
    let elements = |name: &'static str| tree.descendants().filter(move |node| node.has_tag_name(name));

    // Each method has its row in the table; what they judge has its words, its losses and its curve.
    let table = elements("table").find(|table| table.attribute("id") == Some("scores")).unwrap();
    let names: Vec<&str> =
        table.descendants().filter(|node| node.attribute("scope") == Some("row")).filter_map(|node| node.text()).collect();
    assert_eq!(names, ["the first + only", "modular", "retrain"]);
    for name in names {
        for title in [format!("Losses of {name}"), format!("ROC curve of the attack on {name}")] {
            assert!(elements("title").any(|node| node.text() == Some(&title)), "no `{title}`");
        }
    }
    assert!(elements("svg").count() >= 8 && elements("svg").all(|svg| svg.descendants().any(|node| node.is_element() && node != svg)));
    let (request, header) = dcu_artifact::read::<Request>(&project.artifact("request#1", &[])).unwrap();
    let all = request.forget.len() + request.retain.len();
    let asked = format!("forget {} of the {all} samples it was trained on (10.0\u{a0}%): drawn at random.", request.forget.len());
    assert!(page.contains(&asked), "`{asked}` is not in the page");
    assert!(elements("code").any(|node| node.text() == Some(header.digest.as_str())), "the lineage has no digest of the request");

    // Nothing is loaded: what has an address is a place on the page, or an image inside of it.
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("@import") && !page.contains("url("));
    for (name, start) in [("href", "#"), ("src", "data:image/png;base64,")] {
        let addresses: Vec<&str> = tree.descendants().filter_map(|node| node.attribute(name)).collect();
        assert!(!addresses.is_empty() && addresses.iter().all(|address| address.starts_with(start)), "{name}: {addresses:?}");
    }
    for folder in [project.path(""), dcu_tests::workspace().to_owned()] {
        assert!(!page.contains(&*folder.display().to_string()), "it names a folder of this machine");
    }

    // The same inputs, the same page; here the seconds, which the runner keeps, are inputs too.
    let again = project.xtask("run", &["--only", "page", "--force"]).success();
    assert_eq!(again.ran(), ["page"], "{}", again.stderr);
    assert!(read(&path) == page, "the page differs when it is made again");
}

#[test]
fn several_seeds_are_set_side_by_side() {
    let project = Project::new(&pipeline());
    let page = read(&named(&project.xtask("run", &["--set", "seeds=[1,2]"]).success()));
    for expected in ["drawn at random, for each of 2 seeds", "Gaps to retraining by seed, points", "each model was trained with 2 seeds"] {
        assert!(page.contains(expected), "`{expected}` is not in the page");
    }
}
