//! What no lint can check: the fences between the rooms of this crate, and that its documents keep up with it.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// The code of a file, without comments and strings' worth of prose in doc comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a readable file");
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The pure core: everything but the two rings of I/O.
fn core_files() -> Vec<PathBuf> {
    let rings = [root().join("src/net"), root().join("src/store")];
    let outside = |path: &PathBuf| rings.iter().any(|ring| path.starts_with(ring));
    let roots = ["net.rs", "lib.rs"].map(|name| root().join("src").join(name));
    rust_files("src").into_iter().filter(|path| !outside(path) && !roots.contains(path)).collect()
}

#[test]
fn the_core_is_pure() {
    let banned = [
        ("tokio", "the core is driven by step()"),
        ("tonic", "wire formats live in net/"),
        ("prost", "wire formats live in net/"),
        ("std::time", "time is an input"),
        ("std::thread", "the shell owns threads"),
        ("std::fs", "durability is an input"),
        ("std::net", "streams are numbers"),
        ("HashMap", "its order differs between runs: BTreeMap"),
        ("HashSet", "its order differs between runs: BTreeSet"),
        ("rand", "randomness is handed in"),
        ("Mutex", "a core is owned by one thread"),
        ("println!", "events are outputs"),
    ];
    let files = core_files();
    assert!(files.len() >= 15, "the core's files were not found: {files:?}");
    let mut found = Vec::new();
    for path in files {
        let text = code(&path);
        for (word, why) in banned {
            let whole = |at: usize| {
                let before = text[..at].chars().next_back();
                let after = text[at + word.len()..].chars().next();
                let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
                !part(before) && !part(after)
            };
            if text.match_indices(word).any(|(at, _)| whole(at)) {
                found.push(format!("{}: {word} ({why})", path.display()));
            }
        }
    }
    assert!(found.is_empty(), "the core is not pure:\n{}", found.join("\n"));
}

#[test]
fn unsafe_code_is_in_one_file_and_says_why_it_is_sound() {
    let kernel = root().join("src/share/field/simd.rs");
    let files: Vec<_> = ["src", "cli/src"].into_iter().flat_map(rust_files).collect();
    let found: Vec<_> = files.into_iter().filter(|path| code(path).contains("unsafe")).collect();
    assert!(found.iter().eq([&kernel]), "unsafe code belongs into one file: {found:?}");
    let text = fs::read_to_string(kernel).expect("readable");
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    let blocks = (0..lines.len()).filter(|at| lines[*at].contains("unsafe {"));
    let silent: Vec<_> = blocks.filter(|at| !lines[at - 1].starts_with("// SAFETY: ")).map(|at| at + 1).collect();
    assert!(silent.is_empty(), "no SAFETY comment above lines {silent:?} of the kernel");
}

#[test]
fn every_rule_can_be_switched_off_and_is_documented_as_needed() {
    let rules = read("src/rule.rs");
    let body =
        rules.split("pub enum Rule {").nth(1).and_then(|rest| rest.split('}').next()).expect("the list of rules");
    let names = body.lines().map(str::trim).filter(|line| line.ends_with(',') && !line.starts_with("//"));
    let names: Vec<&str> = names.map(|line| line.trim_end_matches(',')).collect();
    assert!(names.len() > 20, "{names:?}");
    let core: String = core_files().iter().map(|path| code(path)).collect();
    let unused: Vec<_> = names.iter().filter(|name| !core.contains(&format!("Rule::{name})"))).collect();
    assert!(unused.is_empty(), "rules that switch nothing: {unused:?}");
}

#[test]
fn every_invariant_is_asserted_and_checked() {
    let core: String = rust_files("src").iter().map(|path| fs::read_to_string(path).expect("readable")).collect();
    let tests: String = rust_files("tests").iter().map(|path| fs::read_to_string(path).expect("readable")).collect();
    let protocol = read("docs/protocol.md");
    for number in 1..=10 {
        let name = format!("I{number}");
        let names = |text: &str| text.split(|c: char| !c.is_alphanumeric()).any(|word| word == name);
        assert!(names(&core), "{name} is not named in src/");
        assert!(names(&tests), "{name} is not checked in tests/");
        assert!(protocol.contains(&format!("| {name} ")), "{name} is not in docs/protocol.md");
    }
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = read("Cargo.toml");
    let architecture = read("ARCHITECTURE.md");
    let section = manifest.split("\n[dependencies]\n").nth(1).expect("dependencies");
    let section = section.split("\n[").next().expect("a section");
    let names = section.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name.trim());
    let missing: Vec<&str> = names.filter(|name| !architecture.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md gives no reason for {missing:?}");
}

#[test]
fn ci_runs_the_test_command_of_the_readme() {
    let command = "cargo test --workspace --features seeded-bugs";
    assert!(read("README.md").contains(command), "README.md does not name `{command}`");
    assert!(read(".ci/run").contains(command), ".ci/run does not run `{command}`");
}

#[test]
fn no_file_of_the_core_is_a_maze() {
    for path in core_files() {
        let lines = fs::read_to_string(&path).expect("readable").lines().count();
        assert!(lines <= 800, "{} has {lines} lines: would you find your room in there?", path.display());
    }
}
