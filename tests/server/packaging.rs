//! What is published says what it is: its features, its version, the Rust that it needs.

use std::collections::{BTreeSet, HashMap};
use std::process::Command;

use serde_json::Value;

const NAME: &str = "tower-realm-lock";
const FRONT_PAGE: &str = include_str!("../../src/lib.rs");
const README: &str = include_str!("../../README.md");

/// What cargo knows of the package and of all that it depends on.
fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--all-features",
            "--locked",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo starts");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{problem}");
    serde_json::from_slice(&output.stdout).expect("cargo writes JSON")
}

fn package(metadata: &Value) -> &Value {
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"] == NAME);
    package.expect("this package")
}

/// The numbers of a version, as far as they are written.
fn version(text: &str) -> Vec<u64> {
    let numbers = text.split('.').map(|number| number.parse().unwrap());
    numbers.collect()
}

/// All packages that are built for a user of the library.
fn dependencies(metadata: &Value) -> BTreeSet<String> {
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let nodes: HashMap<&str, &Value> = nodes
        .iter()
        .map(|node| (node["id"].as_str().unwrap(), node))
        .collect();
    let mut found = BTreeSet::new();
    let mut open = vec![package(metadata)["id"].as_str().unwrap()];
    while let Some(id) = open.pop() {
        if !found.insert(id.to_owned()) {
            continue;
        }
        for dependency in nodes[id]["deps"].as_array().unwrap() {
            let mut kinds = dependency["dep_kinds"].as_array().unwrap().iter();
            if kinds.any(|kind| kind["kind"] != "dev") {
                open.push(dependency["pkg"].as_str().unwrap());
            }
        }
    }
    found
}

#[test]
fn no_dependency_needs_a_newer_rust_than_the_stated_one() {
    let metadata = metadata();
    let stated = package(&metadata)["rust_version"].as_str().unwrap();
    let dependencies = dependencies(&metadata);
    assert!(dependencies.len() > 50, "{dependencies:?}");
    for package in metadata["packages"].as_array().unwrap() {
        let used = dependencies.contains(package["id"].as_str().unwrap());
        if let (true, Some(needed)) = (used, package["rust_version"].as_str()) {
            let name = &package["name"];
            assert!(version(needed) <= version(stated), "{name} needs {needed}");
        }
    }
    let told = format!("Rust {stated}");
    assert!(README.contains(&told), "the README does not say {told}");
}

#[test]
fn every_feature_is_told_on_the_front_page_and_in_the_readme() {
    let metadata = metadata();
    let features = package(&metadata)["features"].as_object().unwrap();
    assert!(features.len() > 2, "{features:?}");
    let (_, page) = FRONT_PAGE.split_once("# Features").expect("the section");
    let (page, _) = page.split_once("//! # ").expect("the next one");
    for feature in features.keys() {
        let code = format!("`{feature}`");
        assert!(page.contains(&code), "{feature} is not on the front page");
        assert!(README.contains(&code), "{feature} is not in the README");
    }
}

#[test]
fn the_readme_and_the_changelog_are_of_this_version() {
    let metadata = metadata();
    let version = package(&metadata)["version"].as_str().unwrap();
    let (minor, _) = version.rsplit_once('.').unwrap();
    let line = format!("{NAME} = {{ version = \"{minor}\"");
    assert!(README.contains(&line), "the README does not say {line}");
    let changelog = include_str!("../../CHANGELOG.md");
    let told =
        changelog.contains("## [Unreleased]") || changelog.contains(&format!("## [{version}]"));
    assert!(told, "nothing of {version} in the changelog");
}
