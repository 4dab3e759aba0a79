//! Whether the clients' history is linearizable, key by key: once more from outside, with nothing but what was called when,
//! what was answered when, and what a fresh client reads in the end. See `tests/common/linear.rs`.
//!
//! A write whose client never learned how it ended may have happened, or not. Where a recovery was concluded by somebody's
//! decision, what did not survive does not count, nor do the answers of what survived otherwise than it was answered:
//! whether that is named and told is for the checker to say.

use std::collections::{BTreeMap, HashMap};

use crate::checker::{Gone, Survivor};
use crate::journal::{Journal, Line, What};
use crate::ledger::{Reply, Stamp};
use crate::linear::{self, Model, Operation, Verdict};

/// Far more than there are operations: good histories need one step for each.
const STEPS_MAX: u64 = 20_000_000;

/// A key, as its users see it.
struct Key;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Value {
    version: u64,
    length: u64,
    crc: u32,
}

enum Call {
    Write(Stamp, What),
    Read,
}

enum Answer {
    Written { version: u64, done: bool },
    Read(Value),
}

impl Model for Key {
    type State = Value;
    type Call = Call;
    type Answer = Answer;

    fn step(state: &Value, call: &Call, answer: Option<&Answer>) -> Option<Value> {
        let Call::Write(stamp, what) = call else {
            return matches!(answer, Some(Answer::Read(value)) if value == state).then_some(*state);
        };
        let stamp = stamp.to_bytes();
        let (mut done, version) = (true, state.version + 1);
        let mut after = match what {
            What::Append => {
                let mut hasher = crc32fast::Hasher::new_with_initial(state.crc);
                hasher.update(&stamp);
                Value { version, length: state.length + stamp.len() as u64, crc: hasher.finalize() }
            }
            What::CompareAndSet { expected } => {
                done = *expected == state.version;
                Value { version, length: stamp.len() as u64, crc: crc32fast::hash(&stamp) }
            }
            What::Put { length, crc } => Value { version, length: *length, crc: *crc },
        };
        if !done {
            after = *state;
        }
        let fits = match answer {
            None => true,
            Some(Answer::Written { version, done: said }) => (*version, *said) == (after.version, done),
            Some(Answer::Read(_)) => false,
        };
        fits.then_some(after)
    }
}

type Histories<'a> = BTreeMap<&'a str, Vec<Operation<Call, Answer>>>;

/// The keys whose histories are not linearizable, and why not. `replies` says what the surviving history answers.
pub(crate) fn not_linearizable(
    journals: &[Journal],
    survivor: &Survivor,
    replies: &HashMap<Stamp, Reply>,
    gone: &Gone,
    by_policy: bool,
) -> Vec<String> {
    let mut histories = Histories::new();
    for journal in journals {
        add_writes(journal, replies, gone, by_policy, &mut histories);
        add_reads(journal, gone, &mut histories);
    }
    for (key, history) in &mut histories {
        let value = survivor.values.get(*key).map_or(Value::default(), |value| Value {
            version: value.version,
            length: value.length,
            crc: value.crc,
        });
        let (answer, from, to) = (Some(Answer::Read(value)), u64::MAX, Some(u64::MAX));
        history.push(Operation { call: Call::Read, answer, from, to, hint: u64::MAX });
    }
    let verdicts = histories
        .iter()
        .map(|(key, history)| (key, history.len(), linear::check::<Key>(history, Value::default(), STEPS_MAX)));
    verdicts
        .filter_map(|(key, all, verdict)| match verdict {
            Verdict::Linearizable => None,
            Verdict::Not(most) => Some(format!("{key}: of {all} operations at most {most} can be ordered")),
            Verdict::Undecided => Some(format!("{key}: no order of its {all} operations was found")),
        })
        .collect()
}

fn add_writes<'a>(
    journal: &'a Journal,
    replies: &HashMap<Stamp, Reply>,
    gone: &Gone,
    by_policy: bool,
    histories: &mut Histories<'a>,
) {
    let mut answered: HashMap<u64, (u64, &Reply)> = HashMap::new();
    for line in &journal.lines {
        if let Line::Acknowledged { serial, at, reply, .. } = line {
            answered.entry(*serial).or_insert((*at, reply));
        }
    }
    for line in &journal.lines {
        let Line::Issued { serial, at, key, what } = line else { continue };
        let stamp = Stamp { client: journal.client, serial: *serial };
        if gone.writes.contains(&stamp) {
            continue;
        }
        let survives = replies.get(&stamp);
        let outcome = answered.get(serial);
        let excused = |reply: &Reply| by_policy && survives.is_some_and(|survives| survives != reply);
        let answer = outcome.filter(|(_, reply)| !excused(reply));
        histories.entry(key).or_default().push(Operation {
            call: Call::Write(stamp, what.clone()),
            answer: answer.map(|(_, reply)| Answer::Written { version: reply.version, done: reply.done }),
            from: *at,
            to: outcome.map(|(at, _)| *at),
            hint: survives.map_or(u64::MAX, |reply| 2 * reply.index),
        });
    }
}

fn add_reads<'a>(journal: &'a Journal, gone: &Gone, histories: &mut Histories<'a>) {
    let mut asked: HashMap<u64, (u64, &str)> = HashMap::new();
    for line in &journal.lines {
        match line {
            Line::Asked { number, at, key } => {
                asked.insert(*number, (*at, key));
            }
            Line::Answered { number, at, index, version, length, crc, .. } => {
                let Some((from, key)) = asked.get(number) else { continue };
                if gone.reads.contains(&(journal.client, *number)) {
                    continue;
                }
                let value = Value { version: *version, length: *length, crc: *crc };
                let (answer, hint) = (Some(Answer::Read(value)), 2 * index + 1);
                histories.entry(key).or_default().push(Operation {
                    call: Call::Read,
                    answer,
                    from: *from,
                    to: Some(*at),
                    hint,
                });
            }
            _ => {}
        }
    }
}
