//! The structure of `src/`: imports point down, no two files import each other, every item is
//! imported from the file that defines it, and each room opens with a manual for maintainers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fmt, fs};

use syn::visit::{self, Visit};
use syn::{Attribute, Ident, Item, Meta, UseTree, Visibility};

/// The files directly in `src/lock` that define values, such as a claim or an error.
///
/// They know nothing of how a lock is held, so the queue and the database may both use them. Every
/// other file directly in `src/lock` belongs to the lock's face, which is above both.
const VALUES: [&str; 7] = [
    "token",
    "lease",
    "error",
    "request",
    "realm_keys",
    "status",
    "tasks",
];

/// The files that must open with a manual: the room's algorithm and invariants.
const MANUALS: [&str; 5] = [
    "realm/mod.rs",
    "lock/queue/mod.rs",
    "lock/postgres/mod.rs",
    "lock/hold.rs",
    "layer/mod.rs",
];

/// The length of a manual in lines.
const MANUAL_LINES: std::ops::RangeInclusive<usize> = 20..=50;

#[test]
fn imports_point_down_make_no_cycle_and_name_the_file_that_defines_the_item() {
    let findings = findings(&source_files());
    let count = findings.len();
    assert!(findings.is_empty(), "{count}:\n{}", findings.join("\n"));
}

#[test]
fn each_room_opens_with_its_manual() {
    let sources = source_files();
    let wrong: Vec<String> = MANUALS
        .iter()
        .filter_map(|file| {
            let source = sources
                .get(*file)
                .unwrap_or_else(|| panic!("no src/{file}"));
            let lines = manual_lines(source);
            (!MANUAL_LINES.contains(&lines)).then(|| {
                format!("src/{file}: its manual has {lines} lines and not {MANUAL_LINES:?}")
            })
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_public_item_has_one_path_at_the_root() {
    let findings = faults_of_the_face(&source_files()["lib.rs"]);
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

/// Each way in which the front page gives an item a second path, or one below the root.
///
/// The compiler warns of a public item in a private module that the front page leaves out.
fn faults_of_the_face(front_page: &str) -> Vec<String> {
    let page = syn::parse_file(front_page).expect("the front page is Rust");
    let is_public = |visibility: &Visibility| matches!(visibility, Visibility::Public(_));
    let mut known = BTreeSet::new();
    let mut faults = Vec::new();
    for item in &page.items {
        match item {
            // The pages of the manual, which have no items.
            Item::Mod(module) if module.ident == "guide" => {}
            Item::Mod(module) if is_public(&module.vis) => {
                faults.push(format!("the module `{}` is public", module.ident));
            }
            Item::Use(item) if is_public(&item.vis) => {
                expand(&item.tree, &mut Vec::new(), &mut |path, name, _| {
                    let own = path.last().cloned();
                    match name {
                        None => faults.push(format!("`{}::*` is exported", path.join("::"))),
                        Some(name) if own.as_ref() != Some(&name) => {
                            faults.push(format!("`{name}` is exported under another name"));
                        }
                        Some(name) if known.contains(&name) => {
                            faults.push(format!("`{name}` is exported twice"));
                        }
                        Some(name) => {
                            known.insert(name);
                        }
                    }
                });
            }
            _ => {}
        }
    }
    faults
}

/// How many lines of module documentation a file opens with.
fn manual_lines(source: &str) -> usize {
    let is_manual = |line: &&str| line.starts_with("//!");
    source.lines().take_while(is_manual).count()
}

// The rules.

/// Every violation of a rule, one per line. The keys are paths relative to `src`.
fn findings(sources: &BTreeMap<String, String>) -> Vec<String> {
    let tree = Tree::of(sources);
    let mut findings = Vec::new();
    let mut edges: Edges = BTreeMap::new();
    for import in &tree.imports {
        // The front page gives every public item its path, so its own re-exports are exempt.
        if import.file == "lib.rs" {
            continue;
        }
        let Some(found) = tree.find(&import.module, &import.path, Bound::of(import)) else {
            continue;
        };
        if let Some(right) = &found.behind_facade {
            findings.push(format!(
                "{import}: `{}` is a facade here; import `{right}`",
                import.written()
            ));
        }
        let Some((module, file)) = &found.definition else {
            continue;
        };
        let (from, to) = (Floor::of(&import.module), Floor::of(module));
        if to.height() > from.height() || from.is_beside(to) {
            findings.push(format!(
                "{import}: {from} must not import `{}`, which src/{file} defines in {to}",
                import.written()
            ));
        }
        let is_ancestor = import.module.starts_with(module);
        if !import.is_reexport && *file != import.file && !is_ancestor {
            let to = edges.entry(import.file.clone()).or_default();
            to.entry(file.clone()).or_insert(import.to_string());
        }
    }
    findings.extend(cycles(&edges));
    findings
}

/// A floor or room of the crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Floor {
    /// A helper at the crate's root, such as `metrics`. Every floor may use it.
    Leaf,
    Realm,
    Values,
    Queue,
    Postgres,
    Face,
    Layer,
}

impl Floor {
    fn of(module: &[String]) -> Self {
        let mut names = module.iter().map(String::as_str);
        match (names.next(), names.next()) {
            (Some("layer"), _) => Self::Layer,
            (Some("lock"), Some("queue")) => Self::Queue,
            (Some("lock"), Some("postgres")) => Self::Postgres,
            (Some("lock"), Some(name)) if VALUES.contains(&name) => Self::Values,
            (Some("lock"), _) => Self::Face,
            (Some("realm"), _) => Self::Realm,
            _ => Self::Leaf,
        }
    }

    fn height(self) -> u8 {
        match self {
            Self::Leaf => 0,
            Self::Realm => 1,
            Self::Values => 2,
            Self::Queue | Self::Postgres => 3,
            Self::Face => 4,
            Self::Layer => 5,
        }
    }

    /// Whether both are different rooms of one floor.
    fn is_beside(self, other: Self) -> bool {
        self != other && self.height() == other.height()
    }
}

impl fmt::Display for Floor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leaf => "a helper at the root",
            Self::Realm => "the realm room",
            Self::Values => "the lock's values",
            Self::Queue => "lock/queue",
            Self::Postgres => "lock/postgres",
            Self::Face => "the lock's face",
            Self::Layer => "the layer",
        })
    }
}

/// The files that each file imports, with the place of the first such import.
type Edges = BTreeMap<String, BTreeMap<String, String>>;

/// The import cycles: each set of files that reach one another, with the imports among them.
fn cycles(edges: &Edges) -> Vec<String> {
    let all: BTreeMap<&String, BTreeSet<&String>> = edges
        .keys()
        .map(|file| (file, reach(edges, file)))
        .collect();
    let reaches = |from, to| all.get(from).is_some_and(|files| files.contains(to));
    let meets = |one, other| reaches(one, other) && reaches(other, one);
    let mut reported: BTreeSet<&String> = BTreeSet::new();
    let mut cycles = Vec::new();
    for file in edges.keys() {
        if reported.contains(file) || !meets(file, file) {
            continue;
        }
        let cycle: Vec<&String> = edges.keys().filter(|other| meets(file, other)).collect();
        let mut lines = vec![format!("a cycle of {} files:", cycle.len())];
        for from in &cycle {
            for (to, line) in edges[*from].iter().filter(|(to, _)| cycle.contains(to)) {
                lines.push(format!("    {line}: imports what src/{to} defines"));
            }
        }
        reported.extend(cycle);
        cycles.push(lines.join("\n"));
    }
    cycles
}

/// The files that a file imports, directly or indirectly.
fn reach<'a>(edges: &'a Edges, file: &'a String) -> BTreeSet<&'a String> {
    let mut reached = BTreeSet::new();
    let mut left = vec![file];
    while let Some(next) = left.pop() {
        let imported = edges.get(next).into_iter().flat_map(BTreeMap::keys);
        left.extend(imported.filter(|file| reached.insert(*file)));
    }
    reached
}

// The module tree.

/// The segments of a path. That of a module starts at the crate's root.
type Names = Vec<String>;

/// The crate's modules, without those for tests, and their imports.
#[derive(Default)]
struct Tree {
    modules: BTreeMap<Names, Module>,
    imports: Vec<Import>,
}

#[derive(Default)]
struct Module {
    file: String,
    /// The names that it defines, except child modules.
    items: BTreeSet<String>,
    /// The names that it imports and their paths as written; several paths where `cfg` selects one.
    bound: BTreeMap<String, Vec<Names>>,
    /// The modules from which it imports everything.
    globs: Vec<Names>,
}

/// A path in a `use` item, or a path with several segments in code.
struct Import {
    file: String,
    line: usize,
    /// The module that contains it.
    module: Names,
    path: Names,
    is_glob: bool,
    is_reexport: bool,
    is_use: bool,
}

impl Import {
    fn written(&self) -> String {
        let end = if self.is_glob { "::*" } else { "" };
        format!("{}{end}", self.path.join("::"))
    }
}

impl fmt::Display for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}", self.file, self.line)
    }
}

/// Whether the first segment of a path can be a name that its module imports.
#[derive(Clone, Copy, PartialEq)]
enum Bound {
    /// In a `use` item, such a segment is a crate.
    No,
    Yes,
}

impl Bound {
    fn of(import: &Import) -> Self {
        if import.is_use { Self::No } else { Self::Yes }
    }
}

/// What a path refers to.
struct Found {
    /// The module and the file that define it; `None` for an item of another crate.
    definition: Option<(Names, String)>,
    /// The path to import instead, if the path goes through a module that only re-exports the item.
    behind_facade: Option<String>,
}

/// What a path refers to once re-exports are followed.
#[derive(Debug)]
enum End {
    Module(Names),
    /// The module that defines the item, and the rest of the path.
    Item(Names, Names),
    OtherCrate(Names),
}

impl Tree {
    fn of(sources: &BTreeMap<String, String>) -> Self {
        let mut tree = Self::default();
        tree.add_file(sources, "lib.rs", &Vec::new());
        tree
    }

    fn add_file(&mut self, sources: &BTreeMap<String, String>, file: &str, module: &Names) {
        let source = sources.get(file);
        let source = source.unwrap_or_else(|| panic!("src/{file} is missing"));
        let parsed = syn::parse_file(source);
        let parsed = parsed.unwrap_or_else(|error| panic!("src/{file}: {error}"));
        self.add_module(sources, file, module, &parsed.items);
    }

    fn add_module(
        &mut self,
        sources: &BTreeMap<String, String>,
        file: &str,
        module: &Names,
        items: &[Item],
    ) {
        let mut known = Module {
            file: file.to_owned(),
            ..Module::default()
        };
        for item in items {
            known.items.extend(defined(item));
            if let Item::Use(item) = item
                && !is_for_tests(&item.attrs)
            {
                expand(
                    &item.tree,
                    &mut Vec::new(),
                    &mut |path, name, _| match name {
                        Some(name) => known.bound.entry(name).or_default().push(path),
                        None => known.globs.push(path),
                    },
                );
            }
        }
        self.modules.insert(module.clone(), known);
        for item in items {
            match item {
                Item::Mod(child) if is_for_tests(&child.attrs) => {}
                Item::Mod(child) => {
                    let path = [module.clone(), vec![child.ident.to_string()]].concat();
                    if let Some((_, items)) = &child.content {
                        self.add_module(sources, file, &path, items);
                    } else {
                        let place = path.join("/");
                        let files = [format!("{place}.rs"), format!("{place}/mod.rs")];
                        let file = files.iter().find(|file| sources.contains_key(*file));
                        let file = file.unwrap_or_else(|| panic!("no file for {place}"));
                        self.add_file(sources, file, &path);
                    }
                }
                item => Imports {
                    file,
                    module,
                    found: &mut self.imports,
                }
                .visit_item(item),
            }
        }
    }

    /// Resolves a path that a module contains; `None` if it refers to another crate.
    fn find(&self, module: &Names, path: &Names, bound: Bound) -> Option<Found> {
        let full = self.absolute(module, path, bound)?;
        let named = self.deepest(&full);
        let end = self.follow(&full, &mut BTreeSet::new())?;
        let file_of = |module: &Names| self.modules[module].file.clone();
        let (definition, right) = match end {
            End::Module(at) => (Some((at.clone(), file_of(&at))), at),
            End::Item(at, rest) => {
                let named = if bound == Bound::No {
                    &rest
                } else {
                    &rest[..1]
                };
                (Some((at.clone(), file_of(&at))), [&at, named].concat())
            }
            End::OtherCrate(path) => (None, path),
        };
        let is_direct = definition
            .as_ref()
            .is_some_and(|(_, file)| *file == self.modules[&named].file);
        let root = if definition.is_some() { "crate::" } else { "" };
        let behind_facade = (!is_direct).then(|| format!("{root}{}", right.join("::")));
        Some(Found {
            definition,
            behind_facade,
        })
    }

    /// The same path from the crate's root; `None` if it refers to another crate.
    fn absolute(&self, module: &Names, path: &Names, bound: Bound) -> Option<Names> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some([module.clone(), rest.to_vec()].concat()),
            "super" => {
                let mut base = module.clone();
                let ups = path.iter().take_while(|name| *name == "super").count();
                base.truncate(base.len().checked_sub(ups)?);
                Some([base, path[ups..].to_vec()].concat())
            }
            _ => {
                let full = [module.clone(), path.clone()].concat();
                let child = &full[..=module.len()];
                if self.modules.contains_key(child) {
                    return Some(full);
                }
                let here = &self.modules[module];
                if bound == Bound::No {
                    return here.items.contains(first).then_some(full);
                }
                // A path through an imported module is an import of its own; `Claim::realm` is not.
                let imported = here.bound.get(first)?;
                imported.iter().find_map(|imported| {
                    let imported = self.absolute(module, imported, Bound::No)?;
                    let end = self.follow(&imported, &mut BTreeSet::new())?;
                    matches!(end, End::Module(_)).then(|| [imported, rest.to_vec()].concat())
                })
            }
        }
    }

    /// The deepest module that a path names without re-exports.
    fn deepest(&self, full: &[String]) -> Names {
        let lengths = (0..=full.len()).rev();
        let mut modules = lengths.map(|length| full[..length].to_vec());
        let deepest = modules.find(|module| self.modules.contains_key(module));
        deepest.unwrap_or_default()
    }

    /// Resolves a path from the crate's root and follows re-exports.
    fn follow(&self, full: &[String], seen: &mut BTreeSet<Names>) -> Option<End> {
        if !seen.insert(full.to_vec()) {
            return None;
        }
        let at = self.deepest(full);
        let rest = full[at.len()..].to_vec();
        let Some(name) = rest.first() else {
            return Some(End::Module(at));
        };
        let module = &self.modules[&at];
        if module.items.contains(name) {
            return Some(End::Item(at, rest));
        }
        for path in module.bound.get(name).into_iter().flatten() {
            let Some(full) = self.absolute(&at, path, Bound::No) else {
                return Some(End::OtherCrate([path, &rest[1..]].concat()));
            };
            if let Some(end) = self.follow(&[&full, &rest[1..]].concat(), seen) {
                return Some(end);
            }
        }
        for glob in &module.globs {
            let end = self
                .absolute(&at, glob, Bound::No)
                .and_then(|full| self.follow(&[full, rest.clone()].concat(), seen));
            if let Some(End::Item(at, rest)) = &end
                && self.modules[at].items.contains(&rest[0])
            {
                return end;
            }
        }
        // Probably generated by a macro in this module.
        Some(End::Item(at, rest))
    }
}

/// The name that an item defines.
fn defined(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

/// Whether an item exists only in tests.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let Meta::List(list) = &attribute.meta else {
            return false;
        };
        let condition = list.tokens.to_string();
        let words = || condition.split(|c: char| !c.is_alphanumeric());
        let has = |word| words().any(|it| it == word);
        list.path.is_ident("cfg") && has("test") && !has("any") && !has("not")
    })
}

/// Calls `each` with every path of a `use` item, the name it binds (`None` for a glob), and its
/// line.
fn expand(tree: &UseTree, path: &mut Names, each: &mut impl FnMut(Names, Option<String>, usize)) {
    match tree {
        UseTree::Path(tree) => {
            path.push(tree.ident.to_string());
            expand(&tree.tree, path, each);
            path.pop();
        }
        UseTree::Group(group) => {
            for tree in &group.items {
                expand(tree, path, each);
            }
        }
        UseTree::Glob(glob) => {
            let line = glob.star_token.spans[0].start().line;
            each(path.clone(), None, line);
        }
        UseTree::Name(tree) => each_leaf(path, &tree.ident, &tree.ident, each),
        UseTree::Rename(tree) => each_leaf(path, &tree.ident, &tree.rename, each),
    }
}

/// Calls `each` with the path that `name` ends and the name that it binds.
fn each_leaf(
    path: &Names,
    name: &Ident,
    bound: &Ident,
    each: &mut impl FnMut(Names, Option<String>, usize),
) {
    let mut full = path.clone();
    if name != "self" {
        full.push(name.to_string());
    }
    let bound = if bound == "self" {
        full.last().cloned()
    } else {
        Some(bound.to_string())
    };
    each(full, bound, name.span().start().line);
}

/// Collects the imports of an item, including those in function bodies.
struct Imports<'a> {
    file: &'a str,
    module: &'a Names,
    found: &'a mut Vec<Import>,
}

impl<'ast> Visit<'ast> for Imports<'_> {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if is_for_tests(&item.attrs) {
            return;
        }
        if item.leading_colon.is_some() {
            return;
        }
        let is_reexport = !matches!(item.vis, Visibility::Inherited);
        expand(&item.tree, &mut Vec::new(), &mut |path, name, line| {
            self.found.push(Import {
                file: self.file.to_owned(),
                line,
                module: self.module.clone(),
                path,
                is_glob: name.is_none(),
                is_reexport,
                is_use: true,
            });
        });
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string());
        let names: Names = names.collect();
        // A leading `::` names another crate.
        if names.len() > 1 && path.leading_colon.is_none() {
            self.found.push(Import {
                file: self.file.to_owned(),
                line: path.segments[0].ident.span().start().line,
                module: self.module.clone(),
                path: names,
                is_glob: false,
                is_reexport: false,
                is_use: false,
            });
        }
        visit::visit_path(self, path);
    }

    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {}

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_for_tests(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }
}

/// The files of `src` by their relative path.
fn source_files() -> BTreeMap<String, String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = BTreeMap::new();
    let mut left = vec![src.clone()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&src).expect("it is below");
                let name = name.to_str().expect("text").to_owned();
                sources.insert(name, fs::read_to_string(path).expect("text"));
            }
        }
    }
    sources
}

// Each rule finds a violation.

/// The findings in a small crate with the given files, which replace the default ones.
fn seen(files: &[(&str, &str)]) -> Vec<String> {
    let empty = [
        ("lib.rs", "mod realm; mod lock; mod layer; mod metrics;"),
        ("metrics.rs", "pub fn count() {}"),
        ("realm/mod.rs", "pub mod url;"),
        ("realm/url.rs", "pub struct RealmUrl;"),
        (
            "lock/mod.rs",
            "pub mod token; pub mod queue; pub mod postgres; pub mod hold;\n\
             pub use self::token::FencingToken;",
        ),
        (
            "lock/token.rs",
            "pub struct FencingToken; pub struct Other;",
        ),
        ("lock/queue/mod.rs", "pub struct Queue;"),
        ("lock/postgres/mod.rs", "pub struct Postgres;"),
        ("lock/hold.rs", "pub struct Hold;"),
        ("layer/mod.rs", ""),
    ];
    let files = empty.iter().chain(files);
    let sources = files.map(|(file, source)| ((*file).to_owned(), (*source).to_owned()));
    findings(&sources.collect())
}

#[track_caller]
fn assert_seen(files: &[(&str, &str)], expected: &[&str]) {
    let seen = seen(files);
    let all_there = expected
        .iter()
        .all(|part| seen.iter().any(|finding| finding.contains(part)));
    assert!(
        all_there && seen.len() == expected.len(),
        "{seen:#?} and not {expected:#?}"
    );
}

#[test]
fn imports_that_point_down_are_fine() {
    assert_seen(
        &[
            (
                "layer/mod.rs",
                "use crate::lock::hold::Hold; use crate::realm::url::RealmUrl;\n\
                 use crate::metrics;\n\
                 fn f() { metrics::count(); crate::metrics::count(); }",
            ),
            (
                "lock/hold.rs",
                "use super::queue::Queue; use super::postgres::Postgres;\n\
                 use super::token::{FencingToken, Other};\n\
                 use std::fmt; use http::Method; pub struct Hold; enum Own { A } use Own::A;",
            ),
            (
                "lock/queue/mod.rs",
                "use crate::lock::token::FencingToken; pub struct Queue;",
            ),
            (
                "lock/token.rs",
                "use crate::realm::url::RealmUrl; pub struct FencingToken; pub struct Other;",
            ),
        ],
        &[],
    );
}

#[test]
fn an_import_that_points_up_is_found() {
    for (file, source, finding) in [
        (
            "lock/hold.rs",
            "use crate::layer::Layer;",
            "the lock's face must not import",
        ),
        (
            "lock/queue/mod.rs",
            "use crate::lock::hold::Hold;",
            "lock/queue must not import",
        ),
        (
            "lock/postgres/mod.rs",
            "use super::hold::Hold;",
            "lock/postgres must not import",
        ),
        (
            "lock/token.rs",
            "use super::queue::Queue; pub struct FencingToken;",
            "the lock's values must not import",
        ),
        (
            "realm/url.rs",
            "use crate::lock::token::Other;",
            "the realm room must not import",
        ),
        (
            "metrics.rs",
            "use crate::realm::url::RealmUrl;",
            "a helper at the root must not import",
        ),
        // In a function body, as a path in code, and as a re-export.
        (
            "realm/url.rs",
            "fn f() { use crate::lock::token::Other; }",
            "the realm room must not import",
        ),
        (
            "realm/url.rs",
            "fn f() { crate::lock::token::f(); }",
            "the realm room must not import",
        ),
        (
            "realm/url.rs",
            "pub use crate::lock::token::Other;",
            "the realm room must not import",
        ),
    ] {
        assert_seen(&[(file, source)], &[finding]);
    }
    assert_seen(
        &[(
            "realm/url.rs",
            "use crate::lock::token;\nfn f() { token::Other::new(); }",
        )],
        &["realm/url.rs:1", "realm/url.rs:2"],
    );
}

#[test]
fn an_import_between_the_queue_and_the_database_is_found() {
    for (file, source) in [
        ("lock/queue/mod.rs", "use crate::lock::postgres::Postgres;"),
        ("lock/postgres/mod.rs", "use crate::lock::queue::Queue;"),
    ] {
        assert_seen(&[(file, source)], &[&format!("src/{file}:1")]);
    }
}

#[test]
fn an_item_that_is_imported_through_a_facade_is_found_with_its_right_path() {
    let right = "import `crate::lock::token::FencingToken`";
    for (file, source) in [
        ("layer/mod.rs", "use crate::lock::FencingToken;"),
        ("lock/hold.rs", "use super::FencingToken;"),
        ("layer/mod.rs", "pub use crate::lock::FencingToken;"),
        (
            "layer/mod.rs",
            "use crate::lock; fn f() { lock::FencingToken::of(); }",
        ),
        ("layer/mod.rs", "fn f(_: crate::lock::FencingToken) {}"),
    ] {
        assert_seen(&[(file, source)], &[right]);
    }
    // A private import, a glob, a renamed item, and an item of another crate.
    for (facade, used, right) in [
        (
            "use self::token::FencingToken; pub mod token; pub mod hold;",
            "FencingToken",
            "crate::lock::token::FencingToken",
        ),
        (
            "pub mod token; pub mod hold; pub use self::token::*;",
            "Other",
            "crate::lock::token::Other",
        ),
        (
            "pub mod token; pub mod hold; pub use self::token::Other as New;",
            "New",
            "crate::lock::token::Other",
        ),
        (
            "pub mod token; pub mod hold; pub use tokio::time::Instant;",
            "Instant",
            "tokio::time::Instant",
        ),
    ] {
        let user = format!("use super::{used};");
        assert_seen(
            &[("lock/mod.rs", facade), ("lock/hold.rs", &user)],
            &[&format!("import `{right}`")],
        );
    }
    assert_seen(
        &[
            (
                "lib.rs",
                "mod realm; mod lock; mod layer; pub use self::lock::FencingToken;",
            ),
            ("layer/mod.rs", "use crate::FencingToken;"),
        ],
        &[right],
    );
}

#[test]
fn a_cycle_among_files_is_found_with_its_imports() {
    let house = |one, other| {
        [
            ("realm/mod.rs", "pub mod url; pub mod path; pub struct Own;"),
            ("realm/url.rs", one),
            ("realm/path.rs", other),
        ]
    };
    let there = "use super::path::Path; pub struct RealmUrl;";
    let back = "use super::url::RealmUrl; pub struct Path;";
    let seen = seen(&house(there, back));
    let [cycle] = &seen[..] else {
        panic!("{seen:#?}");
    };
    for part in ["2 files", "src/realm/url.rs:1", "src/realm/path.rs:1"] {
        assert!(cycle.contains(part), "{cycle}");
    }
    assert_seen(&house(there, "pub struct Path;"), &[]);
    // A file may use what its ancestors define, and a re-export is not an import.
    assert_seen(
        &house("use super::Own; pub struct RealmUrl;", "pub struct Path;"),
        &[],
    );
    assert_seen(
        &[
            (
                "realm/mod.rs",
                "pub mod url; use self::url::RealmUrl; pub struct Own;",
            ),
            ("realm/url.rs", "use super::Own; pub struct RealmUrl;"),
        ],
        &[],
    );
    // A facade does not hide a cycle.
    let behind = [
        (
            "realm/mod.rs",
            "pub mod url; pub mod path; pub use self::path::Path;",
        ),
        ("realm/url.rs", "use super::Path; pub struct RealmUrl;"),
        ("realm/path.rs", back),
    ];
    assert_seen(&behind, &["is a facade", "a cycle of 2 files"]);
}

#[test]
fn what_only_tests_have_is_exempt() {
    assert_seen(
        &[(
            "realm/url.rs",
            "pub struct RealmUrl;\n\
                 #[cfg(test)] use crate::lock::hold::Hold;\n\
                 #[cfg(test)] fn f() { crate::lock::hold::f(); }\n\
                 #[cfg(all(test, unix))] mod tests { use super::*; use crate::lock::hold::Hold; }\n\
                 #[cfg(test)] mod elsewhere;",
        )],
        &[],
    );
    assert_seen(
        &[(
            "realm/url.rs",
            "#[cfg(not(test))] use crate::lock::hold::Hold;",
        )],
        &["the realm room must not import"],
    );
}

#[test]
fn a_module_within_a_file_belongs_to_the_file() {
    assert_seen(
        &[(
            "realm/url.rs",
            "pub struct RealmUrl;\n\
             mod inner { use super::RealmUrl; use super::super::url::RealmUrl as Same;\n\
             use crate::lock::hold::Hold; }\n\
             use self::inner::Same;",
        )],
        &["realm/url.rs:3: the realm room must not import"],
    );
}

#[test]
fn the_lines_of_a_manual_are_counted_from_the_top() {
    assert_eq!(manual_lines("//! One\n//!\n//! Three\n\n//! No more"), 3);
    assert_eq!(manual_lines("use std::fmt;\n//! Late"), 0);
}

#[test]
fn a_second_path_of_an_item_is_found() {
    for (front_page, fault) in [
        ("mod lock; pub use self::lock::HeldLock; pub mod guide;", ""),
        ("pub mod lock;", "the module `lock` is public"),
        ("pub use self::lock::*;", "`self::lock::*` is exported"),
        (
            "pub use self::lock::HeldLock as Hold;",
            "`Hold` is exported under another name",
        ),
        (
            "pub use self::lock::HeldLock; pub use self::layer::{HeldLock, LockBody};",
            "`HeldLock` is exported twice",
        ),
    ] {
        assert_eq!(faults_of_the_face(front_page).join("\n"), fault);
    }
}
