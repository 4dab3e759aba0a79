//! Watches the tests: breaks the library in one place after the other, and says which check notices.
//!
//! ```text
//! cargo run --release -p tagalong-mutants -- [--list] [--folder FOLDER] [--seconds N] [FILTER…]
//! ```
//!
//! The breaks are in `mutants/list/*.txt`, one file for each module, in the form of a diff ([`list`]). A filter is a part
//! of a mutant's name, the file it changes, or a group of checks. The tree is copied, and all mutants are built into the
//! copy, each behind a switch ([`switch`]). Then, for one after the other, the commands of its group run until one of them
//! fails. Before the first mutant they have to pass without any: a check that always fails would catch everything.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

mod list;
mod run;
mod switch;

use list::Mutant;
use run::{Ran, run};

/// Where it all happens, and how long a command may run.
struct Place {
    tree: PathBuf,
    target: PathBuf,
    limit: Duration,
}

struct Arguments {
    list: bool,
    folder: Option<PathBuf>,
    seconds: u64,
    filters: Vec<String>,
}

fn arguments() -> Result<Arguments, String> {
    let mut found = Arguments { list: false, folder: None, seconds: 240, filters: Vec::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--list" => found.list = true,
            "--folder" => found.folder = Some(words.next().ok_or("--folder wants a folder")?.into()),
            "--seconds" => {
                let seconds = words.next().and_then(|seconds| seconds.parse().ok());
                found.seconds = seconds.ok_or("--seconds wants a number")?;
            }
            _ if word.starts_with('-') => {
                return Err(format!("{word}? --list, --folder FOLDER, --seconds N, or filters"));
            }
            _ => found.filters.push(word),
        }
    }
    Ok(found)
}

/// The workspace that this crate is part of: the one it is run in, where worktrees share what was built in one of them.
fn root() -> PathBuf {
    let built_in = env!("CARGO_MANIFEST_DIR");
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| built_in.into(), PathBuf::from).join("..")
}

/// Puts the files of the tree as it is, committed or not, into the folder `to`, with all mutants in them. What is the same
/// there already is left alone: then it need not be built again.
fn copy_tree(to: &Path, mutants: &[Mutant]) -> Result<(), String> {
    let git = Command::new("git").args(["ls-files", "-co", "--exclude-standard"]).current_dir(root()).output();
    let files = git.map_err(|error| format!("git: {error}"))?.stdout;
    let files = String::from_utf8(files).map_err(|error| format!("git: {error}"))?;
    let files: BTreeSet<&str> = files.lines().filter(|file| root().join(file).is_file()).collect();
    let told = |path: &Path, error| format!("{}: {error}", path.display());
    for file in &files {
        let (from, copy) = (root().join(file), to.join(file));
        let text = switch::installed(file, fs::read(&from).map_err(|error| told(&from, error))?, mutants)?;
        if fs::read(&copy).is_ok_and(|there| there == text) {
            continue;
        }
        let written = copy.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&copy, text));
        written.map_err(|error| told(&copy, error))?;
    }
    // What is no longer in the tree.
    let mut folders = vec![to.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|error| told(&folder, error))?.flatten() {
            let path = entry.path();
            let known = |path: &Path| path.strip_prefix(to).ok()?.to_str().map(|name| files.contains(name));
            if path.is_dir() {
                folders.push(path);
            } else if known(&path) != Some(true) {
                fs::remove_file(&path).map_err(|error| told(&path, error))?;
            }
        }
    }
    Ok(())
}

/// Cargo with these words, in the tree, with one mutant in force; with 0 none is.
fn cargo(words: &[String], place: &Place, number: usize) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(words).current_dir(&place.tree).env("CARGO_TARGET_DIR", &place.target).stdin(Stdio::null());
    cargo.env("PROPTEST_RNG_SEED", "1").env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1");
    // That something fails is enough.
    cargo.env("PROPTEST_MAX_SHRINK_ITERS", "0");
    cargo.env(switch::VARIABLE, number.to_string());
    cargo
}

fn build(group: &str, place: &Place) -> Result<(), String> {
    for words in run::commands(group) {
        match run(cargo(&run::halves(words).0, place, 0), Duration::from_secs(3600)) {
            Ran::Passed => {}
            Ran::Failed(text) => return Err(format!("does not build: {}", run::first_error(&text))),
            Ran::Late => return Err("the build takes an hour".into()),
        }
    }
    Ok(())
}

/// Runs the commands of a group until one fails: who noticed.
fn check(group: &str, place: &Place, number: usize) -> Option<String> {
    run::commands(group).iter().find_map(|words| match run(cargo(&run::halves(words).1, place, number), place.limit) {
        Ran::Passed => None,
        Ran::Failed(text) => Some(run::catcher(words, &text)),
        Ran::Late => Some(format!("{}: hangs", run::target(words))),
    })
}

fn work() -> Result<bool, String> {
    let arguments = arguments()?;
    let all = list::read(&root().join("mutants/list"))?;
    let is_meant =
        |mutant: &Mutant, word: &String| mutant.name.contains(word) || mutant.file == *word || mutant.checks == *word;
    let wanted =
        |mutant: &Mutant| arguments.filters.is_empty() || arguments.filters.iter().any(|word| is_meant(mutant, word));
    // All of them are built in, whichever are tried: another choice is no other build.
    let mutants: Vec<_> = (1..).zip(&all).filter(|(_, mutant)| wanted(mutant)).collect();
    if arguments.list {
        for (_, Mutant { name, file, checks, breaks, .. }) in &mutants {
            println!("{name:<44} {file:<28} {checks:<6} {breaks}");
        }
        return Ok(true);
    }
    let folder = arguments.folder.unwrap_or_else(|| std::env::temp_dir().join("tagalong-mutants"));
    let (tree, target) = (folder.join("tree"), folder.join("target"));
    copy_tree(&tree, &all)?;
    try_all(&mutants, &Place { tree, target, limit: Duration::from_secs(arguments.seconds) })
}

fn try_all(mutants: &[(usize, &Mutant)], place: &Place) -> Result<bool, String> {
    for group in mutants.iter().map(|(_, mutant)| mutant.checks.as_str()).collect::<BTreeSet<_>>() {
        let since = Instant::now();
        build(group, place).map_err(|why| format!("{}: {why}", place.tree.display()))?;
        let built = since.elapsed().as_secs();
        if let Some(by) = check(group, place, 0) {
            return Err(format!("{group} fails without any mutant: {by}"));
        }
        eprintln!("{group}: built in {built} s; passes without a mutant, {} s", since.elapsed().as_secs() - built);
    }
    let (mut rows, mut caught, mut explained, mut bad) = (String::new(), 0, 0, 0);
    let begun = Instant::now();
    for (number, mutant) in mutants {
        let since = Instant::now();
        let word = match (check(&mutant.checks, place, *number), &mutant.survives) {
            (Some(by), None) => {
                caught += 1;
                by
            }
            (None, Some(why)) => {
                explained += 1;
                format!("nothing, and rightly: {why}")
            }
            (Some(by), Some(_)) => {
                bad += 1;
                format!("**{by}**, though it is said to be no break")
            }
            (None, None) => {
                bad += 1;
                "**nothing**".to_owned()
            }
        };
        let row = format!("| {} | {} | {word} | {} |", mutant.name, mutant.breaks, since.elapsed().as_secs());
        eprintln!("{row}");
        rows.push_str(&row);
        rows.push('\n');
    }
    println!("| mutant | what it breaks | caught by | s |\n| --- | --- | --- | --- |\n{rows}");
    let seconds = begun.elapsed().as_secs();
    println!("{} mutants, {caught} caught, {explained} no break, {bad} survived; {seconds} s", mutants.len());
    Ok(bad == 0)
}

fn main() -> ExitCode {
    match work() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(why) => {
            eprintln!("mutants: {why}");
            ExitCode::from(2)
        }
    }
}
