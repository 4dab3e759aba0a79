//! How to test a state machine of your own: here a small one, once as it should be and once with a mistake that is easily
//! made. Run it with
//!
//! ```sh
//! cargo run --no-default-features --features testing --example test_your_own
//! ```
//!
//! The application is a poll. A command is a vote for a colour; the reply says which colours lead. It has to be a function
//! of the votes alone: the backup counts them, too, and so does whoever rebuilds them after a disaster.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use bytes::Bytes;
use tagalong::log::{Digest, Entry};
use tagalong::store::StateMachine;
use tagalong::testing::{self, Dice, Disasters, Failure};

struct Poll {
    votes: HashMap<String, u64>,
    /// The mistake: a `HashMap` has its entries in another order in every process. What leaves it has to be sorted.
    sorted: bool,
}

impl Poll {
    fn good() -> Self {
        Self { votes: HashMap::new(), sorted: true }
    }

    fn bad() -> Self {
        Self { votes: HashMap::new(), sorted: false }
    }

    fn leaders(&self) -> String {
        let most = self.votes.values().max().copied().unwrap_or(0);
        let mut leaders: Vec<&str> =
            self.votes.iter().filter(|(_, votes)| **votes == most).map(|(colour, _)| colour.as_str()).collect();
        if self.sorted {
            leaders.sort_unstable();
        }
        leaders.join(", ")
    }

    /// Every colour and its votes, in the order of the colours.
    fn results(&self) -> String {
        let mut results: Vec<_> = self.votes.iter().map(|(colour, votes)| format!("{colour}={votes}\n")).collect();
        results.sort_unstable();
        results.concat()
    }
}

impl StateMachine for Poll {
    fn apply(&mut self, commands: &[&Entry], replies: &mut Vec<Bytes>) -> io::Result<()> {
        for command in commands {
            // Commands come from clients: what is no vote gets a reply that says so, and never an error or a panic.
            let reply = match std::str::from_utf8(&command.payload) {
                Ok(colour) if !colour.is_empty() && !colour.contains(['=', '\n']) => {
                    *self.votes.entry(colour.to_owned()).or_default() += 1;
                    format!("leading: {}", self.leaders())
                }
                _ => "that is no colour".to_owned(),
            };
            replies.push(reply.into());
        }
        Ok(())
    }

    fn query(&mut self, _: &Bytes) -> io::Result<Bytes> {
        Ok(self.results().into())
    }

    /// A checksum, and the results.
    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        let results = self.results();
        out.write_all(&Digest::crc32(results.as_bytes()).value.to_le_bytes())?;
        out.write_all(results.as_bytes())
    }

    /// Reads everything before it changes anything: a snapshot that is damaged leaves the state as it was.
    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "this is no whole snapshot of a poll");
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        let (checksum, results) = bytes.split_first_chunk::<8>().ok_or_else(damaged)?;
        if Digest::crc32(results).value != u64::from_le_bytes(*checksum) {
            return Err(damaged());
        }
        let mut votes = HashMap::new();
        for line in std::str::from_utf8(results).map_err(|_| damaged())?.lines() {
            let (colour, count) = line.split_once('=').ok_or_else(damaged)?;
            votes.insert(colour.to_owned(), count.parse().map_err(|_| damaged())?);
        }
        self.votes = votes;
        Ok(())
    }
}

/// A command, as a client would write it. A few colours only: votes have to meet.
fn vote(dice: &mut Dice) -> &'static str {
    dice.pick(&["red", "green", "blue", "white", ""])
}

/// In a project of your own this is the body of a test.
fn test(new: fn() -> Poll) -> Result<(), Failure> {
    // What the trait asks for: the same votes give the same replies and the same state, and a snapshot is the state.
    testing::state_machine(new, vote).queries(|_| "").check()
}

/// And this of another: clients vote, primaries are lost for good, and the clients' caches rebuild what is missing.
fn survive(new: fn() -> Poll) -> Result<(), Failure> {
    let survived = Disasters::new(new, vote).seeds(0..50).run()?;
    println!("the good poll survives: {survived}\n");
    Ok(())
}

fn main() {
    let good = test(Poll::good).and_then(|()| survive(Poll::good));
    if let Err(failure) = &good {
        eprintln!("the good poll fails, and should not:\n{failure}");
    }
    let caught = [test(Poll::bad), survive(Poll::bad)].map(|bad| match bad {
        Ok(()) => {
            eprintln!("the bad poll passes, and should not");
            false
        }
        Err(failure) => {
            println!("the bad poll is caught: {failure}\n");
            true
        }
    });
    std::process::exit(i32::from(good.is_err() || caught.contains(&false)));
}
