//! Every page of documentation leads where it says: to files, headings and tests that are there.

use std::fs;
use std::path::{Path, PathBuf};

use pulldown_cmark::{Event, Parser, Tag, TagEnd};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages: those of the root, of `docs` and of the example.
fn pages() -> Vec<PathBuf> {
    let files = ["", "docs", "examples/realm_server"]
        .into_iter()
        .flat_map(|dir| fs::read_dir(root().join(dir)).unwrap())
        .map(|entry| entry.unwrap().path());
    let pages: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    assert!(pages.len() > 5, "{pages:?}");
    pages
}

fn text(page: &Path) -> String {
    fs::read_to_string(page).unwrap_or_else(|error| panic!("{}: {error}", page.display()))
}

/// The targets of a page's links and pictures.
fn targets(markdown: &str) -> Vec<String> {
    Parser::new(markdown)
        .filter_map(|event| match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                Some(dest_url.into_string())
            }
            _ => None,
        })
        .collect()
}

/// What a page says in code style, such as the names of files.
fn code(markdown: &str) -> Vec<String> {
    // Tables are no tables to this parser, but their code is code.
    Parser::new(markdown)
        .filter_map(|event| match event {
            Event::Code(code) => Some(code.into_string()),
            _ => None,
        })
        .collect()
}

/// The anchors of a page's headings, as code hosts make them.
fn anchors(markdown: &str) -> Vec<String> {
    let mut anchors = Vec::new();
    let mut heading: Option<String> = None;
    for event in Parser::new(markdown) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            Event::End(TagEnd::Heading(_)) => anchors.extend(heading.take().map(|it| anchor(&it))),
            _ => {}
        }
    }
    anchors
}

fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn links_within_the_repository_lead_somewhere() {
    let mut followed = 0;
    for page in pages() {
        let markdown = text(&page);
        for target in targets(&markdown) {
            let here = format!("{} links to {target}", page.display());
            if target.contains(':') {
                assert!(target.starts_with("https://"), "{here}");
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let linked = match path {
                "" => page.clone(),
                path => page.parent().unwrap().join(path),
            };
            assert!(linked.exists(), "{here}, which is not there");
            if !anchor.is_empty() {
                let anchors = anchors(&text(&linked));
                assert!(anchors.iter().any(|it| it == anchor), "{here}: {anchors:?}");
            }
            followed += 1;
        }
    }
    assert!(followed > 5, "{followed}");
}

#[test]
fn files_that_a_page_names_are_there() {
    let mut named = 0;
    for page in pages() {
        for code in code(&text(&page)) {
            let file = code.split([' ', ':']).next().unwrap_or_default();
            let first = file.split('/').next().unwrap_or_default();
            let ours = [
                "tests", "docs", "scripts", "examples", "src", "fuzz", "benches",
            ];
            if file.contains('/') && ours.contains(&first) && !file.contains(['{', '*', '<']) {
                let here = format!("{} names {code}", page.display());
                assert!(root().join(file).exists(), "{here}, which is not there");
                named += 1;
            }
        }
    }
    assert!(named > 30, "{named}");
}

/// The modules of the test programs: a file or a folder beside each program's `main.rs`.
fn test_modules() -> Vec<PathBuf> {
    let mut modules = Vec::new();
    for program in fs::read_dir(root().join("tests")).unwrap() {
        let program = program.unwrap().path();
        // `faults` is one promise, and `support` is no program.
        if !program.join("main.rs").exists() || program.ends_with("faults") {
            continue;
        }
        let files = fs::read_dir(&program).unwrap();
        let files = files.map(|entry| entry.unwrap().path().with_extension(""));
        modules.extend(files.filter(|path| !path.ends_with("main")));
    }
    assert!(modules.len() > 40, "{modules:?}");
    modules
}

/// The tests in the tables of the guarantees are modules of the test programs or of the library, or
/// the program `faults`.
#[test]
fn each_promise_names_a_test_that_is_there() {
    let modules = test_modules();
    let page = text(&root().join("docs/guarantees.md"));
    let (_, rest) = page.split_once("## Promises and their tests").unwrap();
    let (section, _) = rest.split_once("\n## ").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    let promises: Vec<_> = rows.skip(2).collect();
    assert!(promises.len() > 40);
    for row in promises {
        let tests = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let named = code(tests);
        assert!(!named.is_empty(), "no test in {row}");
        for test in named {
            let there = if test.contains("::") {
                let file = root().join("src").join(test.replace("::", "/"));
                file.exists() || file.with_extension("rs").exists()
            } else {
                test == "faults" || modules.iter().any(|module| module.ends_with(&test))
            };
            assert!(there, "{test} is no test, in {row}");
        }
    }
}

/// Cargo compiles a program's `main.rs`, and no file that it does not declare.
#[test]
fn each_test_file_belongs_to_a_program() {
    for module in test_modules() {
        let name = module.file_name().unwrap().to_str().unwrap();
        let main = text(&module.with_file_name("main.rs"));
        let declared = main.lines().any(|line| line == format!("mod {name};"));
        assert!(declared, "no program declares {}", module.display());
    }
}

/// Documentation comments are shown elsewhere than where they stand.
#[test]
fn comments_link_to_no_file() {
    let mut folders = vec![root().join("src")];
    let mut read = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let source = text(&path);
            let comments: Vec<_> = source
                .lines()
                .filter_map(|line| {
                    let line = line.trim_start();
                    line.strip_prefix("//!").or(line.strip_prefix("///"))
                })
                .collect();
            for target in targets(&comments.join("\n")) {
                let to_a_file = [".md", ".rs", ".svg"]
                    .iter()
                    .any(|end| target.ends_with(end));
                let here = format!("{} links to {target}", path.display());
                assert!(!to_a_file || target.starts_with("https://"), "{here}");
                read += 1;
            }
        }
    }
    assert!(read > 20, "{read}");
}

#[test]
fn headings_become_anchors() {
    assert_eq!(
        anchor("What it can't do: `nest`, etc."),
        "what-it-cant-do-nest-etc"
    );
}
