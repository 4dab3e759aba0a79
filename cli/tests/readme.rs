//! The README shows what is run: its code is the example's, and its commands exist.

use std::fs;
use std::path::Path;
use std::process::Command;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The content of the fenced blocks of one language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("```").next().expect("a first part")).collect()
}

#[test]
fn the_code_is_the_example() {
    let (readme, example) = (read("README.md"), read("examples/embed.rs"));
    let code: String =
        example.lines().filter(|line| !line.starts_with("//!")).map(|line| format!("{line}\n")).collect();
    assert_eq!(blocks(&readme, "rust"), [code.trim_start()], "README.md and examples/embed.rs differ");
}

/// Every call of the command in the README is one that the command would take.
#[test]
fn the_commands_exist() {
    let readme = read("README.md");
    let lines = blocks(&readme, "sh").into_iter().flat_map(str::lines);
    let inline = readme.split('`').skip(1).step_by(2);
    let calls: Vec<&str> = lines.chain(inline).filter(|text| text.starts_with("tagalong ")).collect();
    assert!(calls.len() > 8, "{calls:?}");
    for call in calls {
        let call = call.split('#').next().unwrap_or_default();
        let words: Vec<&str> = call.split_whitespace().skip(1).collect();
        let flags = words.iter().filter(|word| word.starts_with("--"));
        let name = words.iter().take(if words[0] == "kv" { 2 } else { 1 });
        let help = Command::new(env!("CARGO_BIN_EXE_tagalong")).args(name).arg("--help").output().expect("it runs");
        let text = String::from_utf8_lossy(&help.stdout).into_owned();
        assert!(help.status.success(), "{call}: {}", String::from_utf8_lossy(&help.stderr));
        for flag in flags {
            assert!(text.contains(flag), "{call}: there is no {flag}");
        }
    }
}
