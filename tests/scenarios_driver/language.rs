//! The language of the transcripts: one line is one step, or one expectation. Parsed strictly: a line that is not
//! understood is an error that names file and line.
//!
//! A file begins with its title as a comment; `needs: Manifest` says that the scenario fails without that rule of the
//! protocol. What a step is answered may follow it, behind an arrow. The words are:
//!
//! ```text
//! service: covered, f=1, open           what the nodes that start from now on are set to (see `play::setting`)
//! primary east                          a new primary, in a failure domain of its own
//! backup west                           a new backup, which follows the primary, and is in sync
//! late backup west                      the same, but perhaps not in sync yet
//! west follows east                     it dials that node from now on
//! east becomes a backup of west         with an empty disk; what it had is set aside
//! clients anna, ben in rack-1           each in a failure domain of its own, unless one is named; readers and holders, too
//! everybody writes b                    each client a command of its own: `b-anna`, `b-ben`
//!
//! anna writes a b, stable -> waits      the list gets `a`, then `b`; acknowledged, refused, superseded, waits, busy, ...
//! anna writes c after b -> refused      only if `b` is the last of the list
//! anna tries c -> busy                  only if it can be sent at once
//! anna withdraws c                      before it was sent
//! anna reads -> a b                     the whole list; `nothing` if it is empty
//! anna flushes -> flushed               when all of hers is stable
//! anna closes -> closed
//!
//! east dies, anna dies                  the process; what was on disk is there when it
//! east starts again                     on it
//! east is lost, anna is lost            with everything it had
//! anna moves to rack-2                  while she is down: where her next process says that it is
//! anna's cache is copied                and `anna starts again on the copy`, as of then
//! anna reconnects                       her streams break, and she dials again
//! anna is cut off from east             until `anna is back`; without `from east`, from every node
//! the link is cut, the link is back     between nodes
//! replies east sends anna are lost      on the streams that stand: lost, held (until they `arrive`), doubled, or cut after one
//! east's disk stalls, goes on           also `machine`, and a client's `cache`
//! east's disk fails                     at the next write, and with it the node stops
//! east's machine errs                   its list gets a word that nobody wrote
//! hold everything, let everything go    so that steps between them come at once
//! wait 20ms
//!
//! west is promoted [by force] [, concluding by stop after 1s or 10s] [-> refused]
//! west is told to stop at the gap       or: to skip the gap, to exclude anna, to end anna's session, to stop
//!
//! west: a b                             the list there
//! b is acknowledged                     or any other outcome; several words: `a b are acknowledged`
//! b is on west's disk, not on ...       durable there
//! anna holds b                          what her cache has of her own
//! nobody is told of a loss
//! not healed: why                       the scenario ends without healing
//! ```
//!
//! What else can be seen is in [`see`]; what else is sent than replies, in [`Parcel::is`](crate::wires::Parcel::is). A stream
//! keeps its order: behind what is held up everything is, and where something is lost nothing more comes. After each step
//! a tenth of a second passes; after the last everything that can be mended is, everybody dials, and there has to be rest.

use std::path::Path;

/// A transcript.
pub struct Script {
    pub file: String,
    pub title: String,
    /// Without any of these rules it fails.
    pub needs: Vec<String>,
    pub lines: Vec<Line>,
    /// Why it is not healed in the end, where it is not.
    pub unhealed: Option<String>,
}

pub struct Line {
    pub number: usize,
    pub text: String,
    pub what: What,
}

pub enum What {
    /// A step, and the answer it has to get, if that is said.
    Do(Step, Option<String>),
    /// What has to be seen.
    See(Ask, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Lost,
    Held,
    Doubled,
    /// The first still comes, and then nothing more.
    Cut,
    /// As it should be; what was held comes.
    Flowing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Disk,
    Machine,
    Cache,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Writer,
    Reader,
    Holder,
}

pub enum Step {
    Service(Vec<String>),
    Primary(String),
    Backup(String, bool),
    Everybody(String),
    Errs(String),
    Follows(String, String),
    Becomes(String, String),
    Clients(Kind, Vec<(String, Option<String>)>, Vec<String>),
    Write { who: String, words: Vec<String>, after: Option<String>, level: Option<String>, at_once: bool },
    Withdraw(String, String),
    Read(String, Option<String>),
    Flush(String),
    Close(String),
    Die(String),
    Lose(String),
    Start(String),
    Move(String, String),
    CopyCache(String),
    StartOnCopy(String),
    Reconnect(String),
    CutOff(String, Option<String>),
    Back(String),
    Link(bool),
    Wire { what: String, from: String, to: String, mode: Mode },
    Stall(String, Part, bool),
    DiskFails(String),
    Promote { who: String, force: bool, conclude: Option<(String, u64, u64)> },
    Resolve(String, String),
    Exclude(String, String),
    EndSession(String, String),
    Stop(String),
    Hold(bool),
    Wait(u64),
}

/// What can be looked at; it is compared as text.
pub enum Ask {
    Lists(Vec<String>),
    Outcome(Vec<String>),
    OnDisk(Vec<String>, String),
    /// Whether a command has the place in the log that it had in an older reign.
    Rebuilt(String, String),
    Met(String),
    Protected(String),
    Role(String),
    InSync(String),
    Short(String),
    Awaits(String),
    Lacks(String),
    Accuses(String),
    Missing(String),
    Excluded(String),
    GaveUp(String),
    Concluded(String),
    Decoded(String),
    Delta(String),
    Standing(String, String),
    SawDivergence(String),
    SawBeyond(String),
    StoppedClean(String),
    Holds(String),
    Shares(String),
    Attached(String),
    ToldLost(String),
    RolledBack(String),
    Waiting(String),
    Over(String),
    AnyLoss,
}

/// Reads one transcript.
pub fn parse(path: &Path, text: &str) -> Result<Script, String> {
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    // The comment at the top, over as many lines as it takes.
    let title: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("# ")).collect();
    let title = title.join(" ");
    if title.is_empty() {
        return Err(format!("{file}:1: a scenario begins with its title, as a comment"));
    }
    let mut script = Script { file, title, needs: Vec::new(), lines: Vec::new(), unhealed: None };
    for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        if let Some(rules) = line.strip_prefix("needs: ") {
            script.needs.extend(rules.split(", ").map(str::to_owned));
        } else if let Some(why) = line.strip_prefix("not healed: ") {
            script.unhealed = Some(why.to_owned());
        } else {
            let what = read(line).ok_or_else(|| format!("{}:{number}: not understood: {line}", script.file))?;
            script.lines.push(Line { number, text: line.to_owned(), what });
        }
    }
    if !script.lines.iter().any(|line| matches!(line.what, What::See(..) | What::Do(_, Some(_)))) {
        return Err(format!("{}: a scenario says what must hold", script.file));
    }
    Ok(script)
}

fn read(line: &str) -> Option<What> {
    let (step, answer) = match line.split_once(" -> ") {
        Some((step, answer)) => (step.trim(), Some(answer.trim().to_owned())),
        None => (line, None),
    };
    let spaced = step.replace("'s ", " 's ").replace(',', " , ").replace(": ", " : ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    if let Some(step) = act(&words) {
        return Some(What::Do(step, answer));
    }
    see(&words).filter(|_| answer.is_none()).map(|(ask, wanted)| What::See(ask, wanted))
}

fn own(word: &str) -> String {
    word.to_owned()
}

/// Names, separated by commas.
fn names(words: &[&str]) -> Option<Vec<String>> {
    let list: Vec<String> = words.split(|word| *word == ",").map(|part| part.join(" ")).collect();
    let fine = list.iter().all(|name| !name.is_empty() && !name.contains(' '));
    fine.then_some(list)
}

/// Commands: `b`, `b*5000` for one of so many bytes, `b1..b9` for nine of them.
fn commands(words: &[&str]) -> Option<Vec<String>> {
    let mut all = Vec::new();
    for word in words {
        if let Some((first, last)) = word.split_once("..") {
            let stem = first.trim_end_matches(|c: char| c.is_ascii_digit());
            let number = |word: &str| word.strip_prefix(stem)?.parse::<u32>().ok();
            all.extend((number(first)?..=number(last)?).map(|number| format!("{stem}{number}")));
        } else {
            all.push(own(word));
        }
    }
    let fine = |word: &String| word.chars().all(|c| c.is_ascii_alphanumeric() || c == '*' || c == '-');
    (!all.is_empty() && all.iter().all(fine)).then_some(all)
}

pub fn duration(word: &str) -> Option<u64> {
    let split = word.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = word.split_at(split);
    let unit = match unit {
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return None,
    };
    Some(number.parse::<u64>().ok()? * unit)
}

fn write(who: &str, rest: &[&str], at_once: bool) -> Option<Step> {
    let (rest, level) = match rest {
        [rest @ .., ",", level] => (rest, Some(own(level))),
        rest => (rest, None),
    };
    let (words, after) = match rest {
        [word, "after", last] => (commands(&[word])?, Some(own(last))),
        rest => (commands(rest)?, None),
    };
    Some(Step::Write { who: own(who), words, after, level, at_once })
}

fn clients(kind: Kind, rest: &[&str]) -> Option<Step> {
    let (mut who, mut options) = (Vec::new(), Vec::new());
    for part in rest.split(|word| *word == ",") {
        match part {
            [option] if option.contains('=') => options.push(own(option)),
            [names] => who.extend(commands(&[names])?.into_iter().map(|name| (name, None))),
            [name, "in", domain] => who.push((own(name), Some(own(domain)))),
            _ => return None,
        }
    }
    Some(Step::Clients(kind, who, options))
}

fn act(words: &[&str]) -> Option<Step> {
    let step = match words {
        ["service", ":", rest @ ..] => Step::Service(names(rest)?),
        ["primary", name] => Step::Primary(own(name)),
        ["backup", name] => Step::Backup(own(name), true),
        ["late", "backup", name] => Step::Backup(own(name), false),
        ["everybody", "writes", stem] => Step::Everybody(own(stem)),
        [who, "'s", "machine", "errs"] => Step::Errs(own(who)),
        [name, "follows", of] => Step::Follows(own(name), own(of)),
        [name, "becomes", "a", "backup", "of", of] => Step::Becomes(own(name), own(of)),
        ["client" | "clients", rest @ ..] => clients(Kind::Writer, rest)?,
        ["reader" | "readers", rest @ ..] => clients(Kind::Reader, rest)?,
        ["holder" | "holders", rest @ ..] => clients(Kind::Holder, rest)?,
        [who, "writes", rest @ ..] => write(who, rest, false)?,
        [who, "tries", rest @ ..] => write(who, rest, true)?,
        [who, "withdraws", word] => Step::Withdraw(own(who), own(word)),
        [who, "reads"] => Step::Read(own(who), None),
        [who, "reads", ",", level] => Step::Read(own(who), Some(own(level))),
        [who, "flushes"] => Step::Flush(own(who)),
        [who, "closes"] => Step::Close(own(who)),
        [who, "dies"] => Step::Die(own(who)),
        [who, "is", "lost"] => Step::Lose(own(who)),
        [who, "starts", "again"] => Step::Start(own(who)),
        [who, "moves", "to", domain] => Step::Move(own(who), own(domain)),
        [who, "'s", "cache", "is", "copied"] => Step::CopyCache(own(who)),
        [who, "starts", "again", "on", "the", "copy"] => Step::StartOnCopy(own(who)),
        [who, "reconnects"] => Step::Reconnect(own(who)),
        [who, "is", "cut", "off"] => Step::CutOff(own(who), None),
        [who, "is", "cut", "off", "from", node] => Step::CutOff(own(who), Some(own(node))),
        ["the", "link", "is", "cut"] => Step::Link(false),
        ["the", "link", "is", "back"] => Step::Link(true),
        [who, "is", "back"] => Step::Back(own(who)),
        [what, from, "sends", to, "is" | "are", mode] => {
            let mode = match *mode {
                "lost" => Mode::Lost,
                "held" => Mode::Held,
                "doubled" => Mode::Doubled,
                "cut" => Mode::Cut,
                _ => return None,
            };
            Step::Wire { what: own(what), from: own(from), to: own(to), mode }
        }
        [what, from, "sends" | "sent", to, "arrives" | "arrive"] => {
            Step::Wire { what: own(what), from: own(from), to: own(to), mode: Mode::Flowing }
        }
        [who, "'s", "disk", "fails"] => Step::DiskFails(own(who)),
        [who, "'s", part, how @ ..] => {
            let part = match *part {
                "disk" => Part::Disk,
                "machine" => Part::Machine,
                "cache" => Part::Cache,
                _ => return None,
            };
            match how {
                ["stalls"] => Step::Stall(own(who), part, true),
                ["goes", "on"] => Step::Stall(own(who), part, false),
                _ => return None,
            }
        }
        [who, "is", "promoted", rest @ ..] => {
            let (force, rest) = match rest {
                ["by", "force", rest @ ..] => (true, rest),
                rest => (false, rest),
            };
            let conclude = match rest {
                [] => None,
                [",", "concluding", "by", how @ ("stop" | "skip"), "after", soft, "or", hard] => {
                    Some((own(how), duration(soft)?, duration(hard)?))
                }
                _ => return None,
            };
            Step::Promote { who: own(who), force, conclude }
        }
        [who, "is", "told", "to", "stop", "at", "the", "gap"] => Step::Resolve(own(who), own("stop")),
        [who, "is", "told", "to", "skip", "the", "gap"] => Step::Resolve(own(who), own("skip")),
        [who, "is", "told", "to", "exclude", client] => Step::Exclude(own(who), own(client)),
        [who, "is", "told", "to", "end", client, "'s", "session"] => Step::EndSession(own(who), own(client)),
        [who, "is", "told", "to", "stop"] => Step::Stop(own(who)),
        ["hold", "everything"] => Step::Hold(true),
        ["let", "everything", "go"] => Step::Hold(false),
        ["wait", time] => Step::Wait(duration(time)?),
        _ => return None,
    };
    Some(step)
}

fn see(words: &[&str]) -> Option<(Ask, String)> {
    let yes = |yes: bool| own(if yes { "yes" } else { "no" });
    let list = |words: &[&str]| {
        names(words).map(|mut names| {
            names.sort();
            names.join(" ")
        })
    };
    let seen = match words {
        [nodes @ .., ":", "nothing"] => (Ask::Lists(names(nodes)?), own("nothing")),
        [who, "holds", "nothing"] => (Ask::Holds(own(who)), own("nothing")),
        ["nobody", "is", "told", "of", "a", "loss"] => (Ask::AnyLoss, own("nobody")),
        [word, "is", "met", "as", level] => (Ask::Met(own(word)), own(level)),
        [word, "is", "rebuilt", "at", node] => (Ask::Rebuilt(own(word), own(node)), yes(true)),
        [word, "is", "protected"] => (Ask::Protected(own(word)), yes(true)),
        [word, "is", "not", "protected"] => (Ask::Protected(own(word)), yes(false)),
        [words @ .., "is" | "are", "on", node, "'s", "disk"] => (Ask::OnDisk(commands(words)?, own(node)), own("all")),
        [words @ .., "is" | "are", "not", "on", node, "'s", "disk"] => {
            (Ask::OnDisk(commands(words)?, own(node)), own("none"))
        }
        [words @ .., "is" | "are", how @ ("acknowledged" | "refused" | "superseded" | "waiting")] => {
            let how = if *how == "waiting" { "waits" } else { how };
            (Ask::Outcome(commands(words)?), own(how))
        }
        [word, "waits"] => (Ask::Outcome(vec![own(word)]), own("waits")),
        [node, "is", role @ ("open" | "recovering" | "down" | "deposed" | "stopped")] => {
            (Ask::Role(own(node)), own(role))
        }
        [node, "is", "a", "backup"] => (Ask::Role(own(node)), own("backup")),
        [node, "is", "in", "sync"] => (Ask::InSync(own(node)), yes(true)),
        [node, "is", "not", "in", "sync"] => (Ask::InSync(own(node)), yes(false)),
        [node, "is", "short", "of", "domains"] => (Ask::Short(own(node)), yes(true)),
        [node, "is", "not", "short", "of", "domains"] => (Ask::Short(own(node)), yes(false)),
        [node, "waits", "for", rest @ ..] => (Ask::Awaits(own(node)), list(rest)?),
        [node, "lacks", count, "entry" | "entries"] => (Ask::Lacks(own(node)), own(count)),
        [node, "accuses", rest @ ..] => (Ask::Accuses(own(node)), list(rest)?),
        [node, "did", "without", rest @ ..] => (Ask::Missing(own(node)), list(rest)?),
        [node, "excluded", rest @ ..] => (Ask::Excluded(own(node)), list(rest)?),
        [node, "gave", "up", count, "entry" | "entries"] => (Ask::GaveUp(own(node)), own(count)),
        [node, "concluded", "by", how @ ("itself" | "stop" | "skip")] => (Ask::Concluded(own(node)), own(how)),
        [node, "decoded", count, "entry" | "entries"] => (Ask::Decoded(own(node)), own(count)),
        [node, "'s", "delta", "is", "empty"] => (Ask::Delta(own(node)), own("0")),
        [node, "'s", "delta", "is", count] => (Ask::Delta(own(node)), own(count)),
        [node, "knows", client, "as", how] => (Ask::Standing(own(node), own(client)), own(how)),
        [node, "saw", "its", "machine", "differ"] => (Ask::SawDivergence(own(node)), yes(true)),
        [node, "saw", "what", client, "observed", "get", "lost"] => (Ask::SawBeyond(own(node)), own(client)),
        [node, "stopped", "in", "good", "order"] => (Ask::StoppedClean(own(node)), yes(true)),
        [who, "holds", rest @ ..] => (Ask::Holds(own(who)), commands(rest)?.join(" ")),
        [who, "keeps", "no", "share"] => (Ask::Shares(own(who)), yes(false)),
        [who, "keeps", "shares"] => (Ask::Shares(own(who)), yes(true)),
        [who, "is", "attached", "to", node] => (Ask::Attached(own(who)), own(node)),
        [who, "is", "attached", "nowhere"] => (Ask::Attached(own(who)), own("nowhere")),
        [who, "is", "told", "that", rest @ .., "is" | "are", "lost"] => {
            (Ask::ToldLost(own(who)), commands(rest)?.join(" "))
        }
        [who, "is", "told", "of", "no", "loss"] => (Ask::ToldLost(own(who)), own("nothing")),
        [who, "is", "told", "of", "a", "rollback"] => (Ask::RolledBack(own(who)), yes(true)),
        [who, "is", "told", "of", "no", "rollback"] => (Ask::RolledBack(own(who)), yes(false)),
        [who, "is", "told", "to", "wait", "for", "the", "backup"] => (Ask::Waiting(own(who)), yes(true)),
        [who, "is", "over", "as", how @ ("closed" | "expired")] => (Ask::Over(own(who)), own(how)),
        _ => {
            let at = words.iter().position(|word| *word == ":")?;
            (Ask::Lists(names(&words[..at])?), commands(&words[at + 1..])?.join(" "))
        }
    };
    Some(seen)
}
