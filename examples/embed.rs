//! The code of the README: one's own state machine, a disaster, and what is there afterwards.

use std::io::{self, Read, Write};

use bytes::Bytes;
use tagalong::log::Entry;
use tagalong::node::RecoveryPolicy;
use tagalong::store::{StateMachine, memory::MemoryLog};
use tagalong::{Backup, Primary, TaggedClient};

/// A story: every command adds to it, every reply is its length.
#[derive(Default)]
struct Story(Vec<u8>);

impl StateMachine for Story {
    fn apply(&mut self, commands: &[&Entry], replies: &mut Vec<Bytes>) -> io::Result<()> {
        for command in commands {
            self.0.extend_from_slice(&command.payload);
            replies.push(self.0.len().to_string().into());
        }
        Ok(())
    }

    fn query(&mut self, _: &Bytes) -> io::Result<Bytes> {
        Ok(self.0.clone().into())
    }

    fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.0)
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let mut story = Vec::new();
        from.read_to_end(&mut story)?;
        self.0 = story;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), tagalong::Error> {
    // Each of the three would be a process of its own, the backup's far away.
    let primary = Primary::builder("east", MemoryLog::new(), Story::default()).start().await?;
    let backup = Backup::builder("west", MemoryLog::new(), Story::default(), primary.endpoint()).start().await?;
    backup.in_sync().await?;
    let nodes = [primary.endpoint(), backup.endpoint()];
    let client = TaggedClient::builder("rack-1").endpoints(nodes).connect().await?;

    client.write("Once upon a time, ").await?.reply()?; // one round trip to the primary, none to the backup
    let length = client.write("nothing was lost.").await?.reply()?;
    primary.abort().await; // the disaster: what the backup did not get is in the client's cache alone now

    let recovery = backup.promote(RecoveryPolicy::Wait).await?;
    let (primary, opened) = recovery.opened().await?;
    assert_eq!(client.read("").await?, "Once upon a time, nothing was lost.");
    assert_eq!(length, "35");
    println!("{} carries on in epoch {}; missing: {:?}", primary.endpoint(), opened.epoch, opened.report.gaps);
    Ok(())
}
