//! Whether a history is linearizable: whether there is an order of its operations that the model explains, and in which
//! none stands before one that had ended when it began. The question is answered exactly.
//!
//! The search is Wing & Gong's, with Lowe's memory of what was tried in vain: (what has been ordered, the state it gives).
//! It takes one object at a time. Linearizability is local (Herlihy & Wing): a history is linearizable if it is for every
//! key. An operation whose outcome is unknown may have happened at any time after it began, or never.
//!
//! Whoever has a witness says so by each operation's `hint`: the search tries operations in that order, so that a good
//! history takes as many steps as it has operations. A wrong hint costs time, never the answer.
//!
//! It knows nothing of the library, of tokio or of any other crate: the simulator and the drill both include it.

use std::collections::HashSet;
use std::hash::Hash;

/// What an object does, one operation after another.
pub(crate) trait Model {
    type State: Clone + Eq + Hash;
    type Call;
    type Answer;

    /// The state after a call, or none if the call is not answered like this in that state.
    fn step(state: &Self::State, call: &Self::Call, answer: Option<&Self::Answer>) -> Option<Self::State>;
}

/// Something that somebody did to one object.
#[derive(Clone, Debug)]
pub(crate) struct Operation<C, A> {
    pub(crate) call: C,
    /// None where it happened, but nobody has to explain what it answered.
    pub(crate) answer: Option<A>,
    pub(crate) from: u64,
    /// None if nobody knows whether it happened at all.
    pub(crate) to: Option<u64>,
    /// Its place in the order that is tried first.
    pub(crate) hint: u64,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Linearizable,
    /// It is not; so many operations can be ordered at most.
    Not(usize),
    /// The search was given up.
    Undecided,
}

/// What has been ordered: every known operation below `low`, and those of the lists.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Ordered<S> {
    low: usize,
    known: Vec<usize>,
    unknown: Vec<usize>,
    state: S,
}

/// A place in the search: what is ordered, what can be next, and how much of that was tried.
struct Frame<S> {
    at: Ordered<S>,
    next: Vec<(bool, usize)>,
    tried: usize,
}

/// Searches for an order, in at most so many steps.
pub(crate) fn check<M: Model>(
    operations: &[Operation<M::Call, M::Answer>],
    initial: M::State,
    steps_max: u64,
) -> Verdict {
    let (mut known, mut unknown): (Vec<_>, Vec<_>) = operations.iter().partition(|operation| operation.to.is_some());
    known.sort_by_key(|operation| (operation.from, operation.hint));
    unknown.sort_by_key(|operation| (operation.hint, operation.from));
    let candidates = |at: &Ordered<M::State>| {
        // Whoever began after another had ended comes after that one.
        let mut ends = u64::MAX;
        let mut next = Vec::new();
        for (index, operation) in known.iter().enumerate().skip(at.low) {
            if operation.from > ends {
                break;
            }
            if at.known.binary_search(&index).is_err() {
                ends = ends.min(operation.to.expect("known"));
                next.push((true, index));
            }
        }
        let open = unknown
            .iter()
            .enumerate()
            .filter(|(index, operation)| operation.from <= ends && at.unknown.binary_search(index).is_err());
        next.extend(open.map(|(index, _)| (false, index)));
        let hint =
            |(is_known, index): &(bool, usize)| if *is_known { known[*index].hint } else { unknown[*index].hint };
        next.sort_by_key(hint);
        next
    };
    let begin = Ordered { low: 0, known: Vec::new(), unknown: Vec::new(), state: initial };
    let next = candidates(&begin);
    let mut stack = vec![Frame { at: begin, next, tried: 0 }];
    let mut in_vain: HashSet<Ordered<M::State>> = HashSet::new();
    let (mut steps, mut most) = (0, 0);
    while let Some(frame) = stack.last_mut() {
        let done = frame.at.low + frame.at.known.len();
        most = most.max(done);
        if done == known.len() {
            return Verdict::Linearizable;
        }
        let Some((is_known, index)) = frame.next.get(frame.tried).copied() else {
            let frame = stack.pop().expect("a frame");
            in_vain.insert(frame.at);
            continue;
        };
        frame.tried += 1;
        steps += 1;
        if steps > steps_max {
            return Verdict::Undecided;
        }
        let operation = if is_known { known[index] } else { unknown[index] };
        let answer = operation.answer.as_ref().filter(|_| is_known);
        let Some(state) = M::step(&frame.at.state, &operation.call, answer) else { continue };
        let mut at = Ordered { state, ..frame.at.clone() };
        let list = if is_known { &mut at.known } else { &mut at.unknown };
        let place = list.partition_point(|other| *other < index);
        list.insert(place, index);
        let dense = at.known.iter().enumerate().take_while(|(count, index)| at.low + count == **index).count();
        at.known.drain(..dense);
        at.low += dense;
        if !in_vain.contains(&at) {
            let next = candidates(&at);
            stack.push(Frame { at, next, tried: 0 });
        }
    }
    Verdict::Not(most)
}
