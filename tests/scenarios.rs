//! Scenarios: transcripts of one disaster or one fault each, played on the protocol's cores. `tests/scenarios/*.txt` are
//! stories for readers first; the words they are made of are listed in `tests/scenarios_driver/language.rs`.
//!
//! ```sh
//! TAGALONG_SCENARIO=reply cargo test --no-default-features --test scenarios -- --nocapture every_scenario
//! cargo test --no-default-features --features seeded-bugs --test scenarios -- --nocapture rules
//! ```
//!
//! The first plays those whose names begin so; the second shows which scenarios fail without which rule of the protocol.

#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "scenarios_driver/client.rs"]
mod client;
#[path = "scenarios_driver/judge.rs"]
mod judge;
#[path = "scenarios_driver/language.rs"]
mod language;
#[path = "scenarios_driver/look.rs"]
mod look;
#[path = "scenarios_driver/node.rs"]
mod node;
#[path = "scenarios_driver/play.rs"]
mod play;
#[path = "scenarios_driver/wires.rs"]
mod wires;
#[path = "scenarios_driver/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use language::Script;
use tagalong::rule::Rule;

/// The transcripts, by name.
fn files() -> Vec<(PathBuf, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

fn scripts() -> Vec<Script> {
    let parsed = files().into_iter().map(|(path, text)| language::parse(&path, &text));
    parsed.collect::<Result<_, _>>().unwrap_or_else(|error| panic!("{error}"))
}

/// Plays one; what panics has failed, too.
fn play(script: &Script) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| play::play(script))).unwrap_or_else(|panic| {
        let why = panic.downcast_ref::<String>().cloned();
        let why = why.or_else(|| panic.downcast_ref::<&str>().map(|why| (*why).to_owned()));
        Err(format!("{}: a panic: {}", script.file, why.unwrap_or_default()))
    })
}

#[test]
fn every_scenario_holds() {
    let only = std::env::var("TAGALONG_SCENARIO").unwrap_or_default();
    let scripts: Vec<Script> = scripts().into_iter().filter(|script| script.file.starts_with(&only)).collect();
    let failed: Vec<String> = scripts.iter().filter_map(|script| play(script).err()).collect();
    println!("{} scenarios", scripts.len());
    assert!(!scripts.is_empty() && failed.is_empty(), "{} failed:\n\n{}", failed.len(), failed.join("\n\n"));
}

#[test]
fn transcripts_are_tidy() {
    let files = files();
    let mut titles = std::collections::BTreeSet::new();
    for (path, text) in &files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let stem = name.strip_suffix(".txt").unwrap_or_else(|| panic!("{name} is no transcript"));
        let fine = stem.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        assert!(fine && stem.contains('-'), "{name}: lower-case words, the first of which is the group");
        let script = language::parse(path, text).unwrap_or_else(|error| panic!("{error}"));
        let known = |rule: &String| Rule::ALL.iter().any(|known| format!("{known:?}") == *rule);
        assert!(script.needs.iter().all(known), "{name}: there is no such rule in {:?}", script.needs);
        assert!(script.title.ends_with('.') && script.title.len() > 20, "{name}: a title says what happens");
        assert!(titles.insert(script.title.clone()), "{name}: another one has the same title");
        assert!(text.lines().all(|line| line.len() <= 120), "{name}: a line is too long");
    }
    assert!(files.len() >= 80, "{} scenarios", files.len());
}

/// A line that is not understood, an expectation that does not hold, and what the judge sees by itself: each is told.
#[test]
fn a_transcript_that_is_wrong_fails() {
    let path = PathBuf::from("wrong.txt");
    let story = "# One write, and a wrong word about it.\nprimary east\nbackup west\nclient anna\n";
    let told = |line: &str| {
        let script = language::parse(&path, &format!("{story}{line}\n"));
        script.and_then(|script| play(&script)).expect_err("it is wrong")
    };
    assert!(told("anna whistles a").contains("wrong.txt:5: not understood: anna whistles a"));
    assert!(told("anna writes a -> refused").contains("wrong.txt:5: expected refused, but it is acknowledged"));
    assert!(
        told("anna writes a -> acknowledged\nwest: b").contains("wrong.txt:6: expected b, but it is a\n  primary east")
    );
    assert!(told("anna writes a -> acknowledged\neast is lost").contains("after healing: nobody serves"));
    assert!(told("zoe writes a -> acknowledged").contains("there is no client zoe"));
    assert!(told("whispers east sends anna are lost\nwest: nothing").contains("nothing of that kind"));
    assert!(told("west's machine errs\nwest: error").contains("after healing: I1: backup and primary differ"));
    let halted = told("west's machine errs\nanna writes a -> acknowledged");
    assert!(halted.contains("wrong.txt:6: west halts"), "{halted}");
    let untitled = language::parse(&path, "primary east\n").err().unwrap();
    assert!(untitled.contains("begins with its title"));
    let silent = language::parse(&path, "# It only starts.\nprimary east\n").err().unwrap();
    assert!(silent.contains("says what must hold"));
    assert!(play(&language::parse(&path, &format!("{story}anna writes a -> acknowledged")).unwrap()).is_ok());
}

#[cfg(feature = "seeded-bugs")]
mod rules {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Once;

    use tagalong::rule::{Rule, switch_off};

    use super::{Script, play, scripts};

    /// Second lines of defence, which no transcript gets to: on streams that keep their order, and with promises that are
    /// durable, nobody ever sends what they refuse. The simulator has stragglers that do.
    const ELSEWHERE: [Rule; 2] = [Rule::StreamEpoch, Rule::RefuseOldEpoch];

    fn quietly() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let old = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                if !std::thread::current().name().is_some_and(|name| name.starts_with("rules")) {
                    old(info);
                }
            }));
        });
    }

    fn named(name: &str) -> Rule {
        let rule = Rule::ALL.into_iter().find(|rule| format!("{rule:?}") == name);
        rule.unwrap_or_else(|| panic!("there is no rule {name}"))
    }

    fn show(caught: &BTreeMap<Rule, Vec<String>>) {
        println!("{:<24} scenarios that fail", "without");
        for rule in Rule::ALL {
            let files = caught.get(&rule).cloned().unwrap_or_default();
            println!("{:<24} {}", format!("{rule:?}"), files.join(" "));
        }
    }

    /// How a scenario fails without a rule.
    fn without(script: &Script, rule: Rule) -> Option<String> {
        switch_off(Some(rule));
        let outcome = play(script);
        switch_off(None);
        outcome.err()
    }

    /// Each scenario that says it needs a rule fails without that rule.
    #[test]
    fn are_needed_where_a_scenario_says_so() {
        quietly();
        let mut caught: BTreeMap<Rule, Vec<String>> = BTreeMap::new();
        let mut wrong = Vec::new();
        for script in scripts() {
            for rule in script.needs.iter().map(|name| named(name)) {
                let name = script.file.trim_end_matches(".txt").to_owned();
                if without(&script, rule).is_some() {
                    caught.entry(rule).or_default().push(name);
                } else {
                    wrong.push(format!("{name} holds without {rule:?}"));
                }
            }
        }
        show(&caught);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let caught: BTreeSet<Rule> = caught.into_keys().chain(ELSEWHERE).collect();
        let missed: Vec<Rule> = Rule::ALL.into_iter().filter(|rule| !caught.contains(rule)).collect();
        assert!(missed.is_empty(), "no scenario says that it needs {missed:?}");
    }

    /// All scenarios without any one rule.
    #[test]
    #[ignore = "an overview: all scenarios, forty times"]
    fn in_full() {
        quietly();
        let only = std::env::var("TAGALONG_RULE").ok().map(|name| named(&name));
        let scripts = scripts();
        let mut caught: BTreeMap<Rule, Vec<String>> = BTreeMap::new();
        let mut checks: BTreeMap<String, usize> = BTreeMap::new();
        for rule in Rule::ALL.into_iter().filter(|rule| only.is_none_or(|only| only == *rule)) {
            for script in &scripts {
                let Some(why) = without(script, rule) else { continue };
                caught.entry(rule).or_default().push(script.file.trim_end_matches(".txt").to_owned());
                let first = why.lines().next().unwrap_or_default();
                let words = first.split(": ").find(|word| word.starts_with('I') && word.len() <= 3);
                let check = words.unwrap_or(if first.contains("a panic") { "panic" } else { "expectation" });
                *checks.entry(check.to_owned()).or_default() += 1;
                if only.is_some() || std::env::var("TAGALONG_WHY").is_ok() {
                    println!("{rule:?}: {first}");
                }
            }
        }
        show(&caught);
        println!("what failed first: {checks:?}");
        assert!(!caught.is_empty(), "nothing fails");
    }
}
