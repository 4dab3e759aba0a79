//! All mutants in one build: each is a copy of the function it changes, and a switch at the start of that function.
//!
//! ```text
//! fn log(&mut self, upto: Lsn) -> bool {
//!     if crate::mutant_is(7) {
//!         return self.log_mutant_7(upto);
//!     }
//!     ...
//! ```
//!
//! To build the library takes minutes and to check it seconds, and so a list that is built once is one that is run. A
//! mutant has to stay within one function, written as rustfmt does.

use std::collections::BTreeMap;

use crate::list::Mutant;

/// The variable that says which mutant is in force, by its place in the list from 1 on.
pub(crate) const VARIABLE: &str = "TAGALONG_MUTANT";

const SWITCH: &str = r#"
/// Whether the mutant with this number is in force.
pub(crate) fn mutant_is(number: usize) -> bool {
    static CHOSEN: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    let chosen = || std::env::var("TAGALONG_MUTANT").ok().and_then(|number| number.parse().ok());
    *CHOSEN.get_or_init(|| chosen().unwrap_or_default()) == number
}
"#;

/// The content of a file with all its mutants.
pub(crate) fn installed(file: &str, content: Vec<u8>, mutants: &[Mutant]) -> Result<Vec<u8>, String> {
    let ours: Vec<_> = (1..).zip(mutants).filter(|(_, mutant)| mutant.file == file).collect();
    if file == "src/lib.rs" {
        return Ok([content, SWITCH.into()].concat());
    }
    if ours.is_empty() {
        return Ok(content);
    }
    let text = String::from_utf8(content).map_err(|error| format!("{file}: {error}"))?;
    switched(&text, &ours).map(String::into_bytes)
}

/// A function: the lines it begins and ends with, and the line that ends its signature.
struct Function {
    first: usize,
    body: usize,
    last: usize,
}

/// The text with every one of its mutants in it, to be switched on.
pub(crate) fn switched(text: &str, mutants: &[(usize, &Mutant)]) -> Result<String, String> {
    let lines: Vec<&str> = text.lines().collect();
    // What goes behind each line.
    let mut behind: BTreeMap<usize, String> = BTreeMap::new();
    for (number, mutant) in mutants {
        let changed = mutant.apply(text)?;
        let changed: Vec<&str> = changed.lines().collect();
        let at = lines.iter().zip(&changed).take_while(|(old, new)| old == new).count();
        let function = function_at(&lines, at).ok_or_else(|| format!("{}: not in a function", mutant.name))?;
        let end = (function.last + changed.len()).checked_sub(lines.len());
        let copy = end.and_then(|end| changed.get(function.first..=end));
        let copy = copy.ok_or_else(|| format!("{}: more than a function", mutant.name))?;
        let signature = lines[function.first..=function.body].join("\n");
        let (name, call) = call_of(&signature).ok_or_else(|| format!("{}: an odd signature", mutant.name))?;
        let indent = &lines[function.first][..indent_of(lines[function.first])];
        let is_async = signature.contains("async fn ");
        let call = call.replacen(&format!("{name}("), &format!("{name}_mutant_{number}("), 1);
        let wait = if is_async { ".await" } else { "" };
        let switch = format!(
            "{indent}    if crate::mutant_is({number}) {{\n{indent}        return {call}{wait};\n{indent}    }}\n"
        );
        *behind.entry(function.body).or_default() += &switch;
        let copy = copy.join("\n").replacen(&format!("fn {name}"), &format!("fn {name}_mutant_{number}"), 1);
        let copy = format!("{indent}{}\n", copy[copy.find("fn ").unwrap_or(0)..].trim_start());
        let copy = if is_async { copy.replacen("fn ", "async fn ", 1) } else { copy };
        *behind.entry(function.last).or_default() += &copy;
    }
    let mut out = String::new();
    for (at, line) in lines.iter().enumerate() {
        out += line;
        out.push('\n');
        out += behind.get(&at).map_or("", String::as_str);
    }
    Ok(out)
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn function_at(lines: &[&str], at: usize) -> Option<Function> {
    let begins = |line: &str| {
        let words = line.trim_start();
        let words = words.strip_prefix("pub").map_or(words, |rest| {
            let rest = if rest.starts_with('(') { rest.split_once(')').map_or(rest, |(_, rest)| rest) } else { rest };
            rest.trim_start()
        });
        let words = words.strip_prefix("async ").unwrap_or(words);
        indent_of(line) <= 4 && words.starts_with("fn ")
    };
    let first = (0..=at.min(lines.len().checked_sub(1)?)).rev().find(|at| begins(lines[*at]))?;
    let body = (first..lines.len()).find(|at| lines[*at].ends_with('{'))?;
    let end = format!("{}}}", &lines[first][..indent_of(lines[first])]);
    let last = (body..lines.len()).find(|at| lines[*at] == end)?;
    (body < at && at <= last).then_some(Function { first, body, last })
}

/// The name of a function, and a call of it with its own parameters.
fn call_of(signature: &str) -> Option<(String, String)> {
    let rest = signature.split_once("fn ")?.1.replace("->", "  ");
    let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let (mut depth, mut part, mut parts) = (0, String::new(), Vec::new());
    let mut generic = 0;
    for c in rest[name.len()..].chars() {
        match c {
            // What comes before the parameters.
            '<' if depth == 0 => generic += 1,
            '>' if depth == 0 => generic -= 1,
            _ if generic > 0 => {}
            '(' | '<' | '[' | '{' => depth += 1,
            ')' | '>' | ']' | '}' => depth -= 1,
            _ => {}
        }
        match c {
            _ if generic > 0 || (depth == 1 && c == '(' && part.is_empty() && parts.is_empty()) => {}
            ',' if depth == 1 => parts.push(std::mem::take(&mut part)),
            _ if depth == 0 && c == ')' => break,
            _ if depth > 0 => part.push(c),
            _ => {}
        }
    }
    parts.push(part);
    let pattern = |part: &String| part.split(':').next().map(|it| it.trim().to_owned()).unwrap_or_default();
    let parts: Vec<String> = parts.iter().map(pattern).filter(|it| !it.is_empty()).collect();
    let is_self = |part: &String| part.ends_with("self") && !part.contains(|c: char| c.is_ascii_digit());
    let method = parts.first().is_some_and(is_self);
    let given = parts.iter().skip(usize::from(method)).map(|part| part.trim_start_matches("mut ").to_owned());
    let given = given.collect::<Vec<_>>().join(", ");
    let inside = signature.starts_with(' ');
    let call = match (method, inside) {
        (true, _) => format!("self.{name}({given})"),
        (false, true) => format!("Self::{name}({given})"),
        (false, false) => format!("{name}({given})"),
    };
    Some((name, call))
}
