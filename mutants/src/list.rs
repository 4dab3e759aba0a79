//! The list: one file for each module, a paragraph for each mutant.
//!
//! ```text
//! mutant stable-goes-back
//! file src/checkpoint.rs
//! breaks I3: a checkpoint that goes back
//! checks core
//! @@
//!          let news = upto > self.stable;
//! -        self.stable = self.stable.max(upto);
//! +        self.stable = upto;
//! ```
//!
//! What follows `@@` is a diff of whole lines: those with a blank or a minus in front occur in the file as they stand
//! here, exactly once, and those with a blank or a plus take their place. A paragraph ends with an empty line. Where a
//! mutant is no break after all, a line `survives because` says why, and the runner takes that for an answer.

use std::fs;
use std::path::Path;

/// One break.
pub(crate) struct Mutant {
    pub(crate) name: String,
    pub(crate) file: String,
    pub(crate) breaks: String,
    pub(crate) checks: String,
    pub(crate) survives: Option<String>,
    before: String,
    after: String,
}

impl Mutant {
    /// The text with the break in it.
    pub(crate) fn apply(&self, text: &str) -> Result<String, String> {
        // Whole lines only.
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1));
        let places: Vec<usize> = starts.filter(|at| text[*at..].starts_with(&self.before)).collect();
        match places.as_slice() {
            [at] if self.before != self.after => {
                Ok(format!("{}{}{}", &text[..*at], self.after, &text[at + self.before.len()..]))
            }
            [_] => Err(format!("{}: changes nothing", self.name)),
            _ => Err(format!("{}: its lines occur {} times in {}", self.name, places.len(), self.file)),
        }
    }
}

/// Reads every file of the list, in order of their names.
pub(crate) fn read(folder: &Path) -> Result<Vec<Mutant>, String> {
    let told = |error| format!("{}: {error}", folder.display());
    let files = fs::read_dir(folder).map_err(told)?.collect::<Result<Vec<_>, _>>().map_err(told)?;
    let mut paths: Vec<_> = files.into_iter().map(|file| file.path()).collect();
    paths.sort();
    let mut mutants = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        for paragraph in text.split("\n\n").map(|it| it.trim_matches('\n')).filter(|it| it.starts_with("mutant ")) {
            mutants.push(parse(paragraph).map_err(|why| format!("{}: {why}", path.display()))?);
        }
    }
    Ok(mutants)
}

fn parse(paragraph: &str) -> Result<Mutant, String> {
    let (head, diff) = paragraph.split_once("\n@@\n").ok_or_else(|| format!("no diff in {paragraph:?}"))?;
    let line = |word: &str| head.lines().find_map(|line| line.strip_prefix(word)).map(|rest| rest.trim().to_owned());
    let named = |word: &str| line(word).ok_or_else(|| format!("no {word:?} in {head:?}"));
    let (mut before, mut after) = (String::new(), String::new());
    for line in diff.lines() {
        let rest = line.get(1..).unwrap_or_default();
        let (old, new) = match line.as_bytes().first() {
            Some(b' ') => (true, true),
            Some(b'-') => (true, false),
            Some(b'+') => (false, true),
            _ => return Err(format!("not a line of a diff: {line:?}")),
        };
        for text in [old.then_some(&mut before), new.then_some(&mut after)].into_iter().flatten() {
            text.push_str(rest);
            text.push('\n');
        }
    }
    Ok(Mutant {
        name: named("mutant ")?,
        file: named("file ")?,
        breaks: named("breaks ")?,
        checks: named("checks ")?,
        survives: line("survives because "),
        before,
        after,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The list must not rot while the code goes on.
    #[test]
    fn every_mutant_fits_the_code() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mutants = read(&root.join("mutants/list")).expect("a list");
        assert!(mutants.len() >= 64, "only {} mutants", mutants.len());
        let names: BTreeSet<_> = mutants.iter().map(|mutant| &mutant.name).collect();
        assert_eq!(names.len(), mutants.len(), "two mutants have the same name");
        let wrong = |mutant: &Mutant| {
            if crate::run::commands(&mutant.checks).is_empty() {
                return Some(format!("{}: no group of checks is called {}", mutant.name, mutant.checks));
            }
            let text = fs::read_to_string(root.join(&mutant.file)).map_err(|error| error.to_string());
            text.and_then(|text| crate::switch::switched(&text, &[(1, mutant)])).err()
        };
        let wrong: Vec<String> = mutants.iter().filter_map(wrong).collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn lines_are_whole_and_occur_once() {
        let mutant = parse("mutant m\nfile f\nbreaks b\nchecks core\n@@\n-one\n+two").expect("a mutant");
        assert_eq!(mutant.apply("zero\none\n").as_deref(), Ok("zero\ntwo\n"));
        assert!(mutant.apply("one\none\n").is_err());
        assert!(mutant.apply("one more\n").is_err());
    }
}
