//! The checker of linearizability, checked: histories whose answer is known, and small ones against brute force.

#[path = "common/linear.rs"]
mod linear;

use linear::{Model, Operation, Verdict, check};

/// A key of a store: its value, if it has one.
struct Key;

#[derive(Clone, Debug)]
enum Call {
    Put(&'static str),
    Append(&'static str),
    CompareAndSet(&'static str, &'static str),
    Get,
}
use Call::{Append, CompareAndSet, Get, Put};

impl Model for Key {
    type State = String;
    type Call = Call;
    /// What was read; of a compare-and-set `yes` or `no`; nothing of the others.
    type Answer = String;

    fn step(state: &String, call: &Call, answer: Option<&String>) -> Option<String> {
        let (after, said) = match call {
            Put(value) => ((*value).to_owned(), String::new()),
            Append(value) => (format!("{state}{value}"), String::new()),
            CompareAndSet(expected, value) if state == expected => ((*value).to_owned(), "yes".to_owned()),
            CompareAndSet(..) => (state.clone(), "no".to_owned()),
            Get => (state.clone(), state.clone()),
        };
        answer.is_none_or(|answer| *answer == said).then_some(after)
    }
}

type Did = Operation<Call, String>;

fn did(from: u64, to: u64, call: Call, answer: &str) -> Did {
    Operation { call, answer: Some(answer.to_owned()), from, to: Some(to), hint: 0 }
}

fn perhaps(from: u64, call: Call) -> Did {
    Operation { call, answer: None, from, to: None, hint: 0 }
}

fn verdict(history: &[Did]) -> Verdict {
    check::<Key>(history, String::new(), 1_000_000)
}

fn is_good(history: &[Did]) {
    assert_eq!(verdict(history), Verdict::Linearizable, "{history:?}");
}

fn is_bad(history: &[Did]) {
    assert!(matches!(verdict(history), Verdict::Not(_)), "{history:?}");
}

#[test]
fn nothing_and_one_after_another_is_good() {
    is_good(&[]);
    is_good(&[did(0, 1, Put("a"), ""), did(2, 3, Append("b"), ""), did(4, 5, Get, "ab")]);
}

#[test]
fn what_overlaps_may_stand_in_either_order() {
    let two = [did(0, 9, Put("a"), ""), did(1, 8, Put("b"), "")];
    is_good(&[&two[..], &[did(10, 11, Get, "a")]].concat());
    is_good(&[&two[..], &[did(10, 11, Get, "b")]].concat());
    is_good(&[&two[..], &[did(2, 3, Get, ""), did(4, 5, Get, "b"), did(6, 7, Get, "a")]].concat());
    is_bad(&[&two[..], &[did(2, 3, Get, "a"), did(4, 5, Get, "b"), did(6, 7, Get, "a")]].concat());
}

#[test]
fn an_end_at_the_moment_of_a_beginning_is_no_order() {
    is_good(&[did(0, 5, Put("a"), ""), did(5, 6, Get, "")]);
}

#[test]
fn a_stale_read_is_bad() {
    is_bad(&[did(0, 1, Put("a"), ""), did(2, 3, Put("b"), ""), did(4, 5, Get, "a")]);
}

#[test]
fn a_lost_update_is_bad() {
    is_bad(&[did(0, 1, Append("a"), ""), did(2, 3, Append("b"), ""), did(4, 5, Get, "b")]);
    is_bad(&[
        did(0, 1, Put("a"), ""),
        did(2, 9, CompareAndSet("a", "b"), "yes"),
        did(3, 8, CompareAndSet("a", "c"), "yes"),
    ]);
}

#[test]
fn a_doubled_append_is_bad() {
    is_bad(&[did(0, 1, Append("a"), ""), did(2, 3, Get, "aa")]);
    // One whose outcome is unknown happens once, too.
    is_bad(&[perhaps(0, Append("a")), did(2, 3, Get, "aa")]);
}

#[test]
fn a_read_from_the_future_is_bad() {
    is_bad(&[did(0, 1, Get, "a"), did(2, 3, Put("a"), "")]);
    is_bad(&[did(0, 1, Get, "a"), perhaps(2, Put("a"))]);
    is_bad(&[did(0, 1, Get, "a")]);
}

#[test]
fn an_unknown_outcome_may_be_either_and_may_come_late() {
    let before = [did(0, 1, Put("a"), ""), perhaps(2, Put("b"))];
    is_good(&[&before[..], &[did(3, 4, Get, "a"), did(5, 6, Get, "a")]].concat());
    is_good(&[&before[..], &[did(3, 4, Get, "a"), did(5, 6, Get, "b")]].concat());
    // Seen, and then unseen.
    is_bad(&[&before[..], &[did(3, 4, Get, "b"), did(5, 6, Get, "a")]].concat());
}

#[test]
fn an_answer_that_nobody_has_to_explain_leaves_its_effect() {
    let put = Operation { answer: None, ..did(0, 1, CompareAndSet("", "a"), "") };
    is_good(&[put.clone(), did(2, 3, Get, "a")]);
    is_bad(&[put, did(2, 3, Get, "")]);
}

#[test]
fn a_long_history_with_hints_takes_a_step_an_operation() {
    let mut history: Vec<Did> = (0..2_000).map(|n| did(n, n + 50, Put("x"), "")).collect();
    history.extend((0..40).map(|n| perhaps(n * 10, Append("y"))));
    history.push(did(3_000, 3_001, Get, "xy"));
    for (place, operation) in history.iter_mut().enumerate() {
        operation.hint = place as u64 + if operation.to.is_none() { 10_000 } else { 0 };
    }
    // One of those whose outcome is unknown did happen, at the end; the last read comes behind it.
    (history[2_005].hint, history[2_040].hint) = (2_500, 3_000);
    assert_eq!(check::<Key>(&history, String::new(), 2_042), Verdict::Linearizable);
    assert_eq!(check::<Key>(&history, String::new(), 100), Verdict::Undecided);
}

/// xorshift: the tests need no crate for their chance.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// Every order of every choice of what did happen, one by one.
fn brute(history: &[Did], state: &String, left: &mut Vec<usize>) -> bool {
    if left.iter().all(|at| history[*at].to.is_none()) {
        return true;
    }
    let ends = left.iter().filter_map(|at| history[*at].to).min();
    for place in 0..left.len() {
        let operation = &history[left[place]];
        if ends.is_some_and(|ends| operation.from > ends) {
            continue;
        }
        let Some(after) = Key::step(state, &operation.call, operation.answer.as_ref()) else { continue };
        let at = left.remove(place);
        let good = brute(history, &after, left);
        left.insert(place, at);
        if good {
            return true;
        }
    }
    false
}

#[test]
fn small_histories_are_judged_as_by_brute_force() {
    let values = ["a", "b"];
    let (mut good, mut bad) = (0, 0);
    for seed in 1..=30_000_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut history = Vec::new();
        let mut state = String::new();
        for at in 0..2 + dice.below(5) {
            let value = values[usize::from(dice.below(2) == 1)];
            let call = match dice.below(5) {
                0 => Put(value),
                1 => Append(value),
                2 => CompareAndSet(["", "a", "b"][usize::try_from(dice.below(3)).expect("small")], value),
                _ => Get,
            };
            // Half of them answer what they would in the order of this loop, so that not all histories are nonsense.
            let (after, said) = match &call {
                CompareAndSet(expected, value) if state == *expected => ((*value).to_owned(), "yes".to_owned()),
                CompareAndSet(..) => (state.clone(), "no".to_owned()),
                Get => (state.clone(), state.clone()),
                call => (Key::step(&state, call, None).expect("a state"), String::new()),
            };
            state = after;
            let wild = dice.below(8) == 0;
            let said = match &call {
                Get if wild => ["", "a", "b", "ab", "aa"][usize::try_from(dice.below(5)).expect("small")].to_owned(),
                CompareAndSet(..) if wild => ["yes", "no"][usize::from(dice.below(2) == 1)].to_owned(),
                _ => said,
            };
            let from = (at * 3 + dice.below(8)).saturating_sub(4);
            let is_unknown = !matches!(call, Get) && dice.below(4) == 0;
            history.push(if is_unknown {
                perhaps(from, call)
            } else {
                let mut operation = did(from, from + dice.below(8), call, &said);
                operation.answer = operation.answer.filter(|_| dice.below(10) > 0);
                operation
            });
        }
        history.iter_mut().for_each(|operation| operation.hint = dice.below(4));
        let expected = brute(&history, &String::new(), &mut (0..history.len()).collect());
        let is_good = verdict(&history) == Verdict::Linearizable;
        assert_eq!(is_good, expected, "seed {seed}: {history:?}");
        if is_good { good += 1 } else { bad += 1 }
    }
    assert!(good > 3_000 && bad > 3_000, "{good} good, {bad} bad");
}
