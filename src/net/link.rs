//! A backup's stream to its primary: dialled again, with pauses, for as long as the node is a backup.

use tokio::sync::{mpsc, oneshot};

use super::node::{Mail, Mailbox};
use super::server::{Outgoing, read_stream, weigh_records};
use super::{Backoff, NetSettings, convert, pb};
use crate::error::{Code, Error, Result};
use crate::message::{BackupMessage, PrimaryMessage, Role};

/// Follows the primary at `endpoint` until the node is no backup any more.
pub(super) async fn follow(mailbox: Mailbox, endpoint: String, settings: NetSettings) {
    let mut backoff = Backoff::new(&settings);
    let mut view = mailbox.view();
    let closing = mailbox.closing();
    tokio::pin!(closing);
    loop {
        let opened = tokio::select! {
            () = &mut closing => return,
            _ = view.wait_for(|view| view.role != Role::Backup || view.failure.is_some()) => return,
            opened = open(&mailbox, &endpoint, &settings) => opened,
        };
        match opened {
            Ok(link) => {
                let started = std::time::Instant::now();
                link.read(&mailbox).await;
                if started.elapsed() > settings.keepalive_interval {
                    backoff.reset();
                }
            }
            Err(error) => tracing::debug!(%error, "the primary cannot be reached"),
        }
        tokio::select! {
            () = &mut closing => return,
            () = tokio::time::sleep(backoff.pause()) => {}
        }
    }
}

/// A stream that stands.
struct Link {
    stream: tonic::Streaming<pb::PrimaryMessages>,
    outbox: mpsc::Sender<BackupMessage>,
    dropped: oneshot::Receiver<()>,
}

async fn open(mailbox: &Mailbox, endpoint: &str, settings: &NetSettings) -> Result<Link> {
    let channel = settings.dial(endpoint, settings.replication_window_bytes).await?;
    let mut client =
        pb::replication_client::ReplicationClient::new(channel).max_decoding_message_size(settings.message_bytes_max);
    let (outbox, queue) = mailbox.long_outbox();
    let pack: fn(_) -> pb::BackupMessages = pb::BackupMessages::from;
    let (outgoing, dropped) = Outgoing::new(queue, weigh, pack);
    // A node answers the call at once; one that does not is as good as away.
    let answer = tokio::time::timeout(settings.connect_timeout, client.follow(outgoing)).await;
    let answer = answer.map_err(|_| Error::new(Code::Unavailable, format!("{endpoint} does not answer")))?;
    let stream = answer.map_err(|status| convert::from_status(&status))?.into_inner();
    Ok(Link { stream, outbox, dropped })
}

impl Link {
    /// Reads to the end. The sequencer ends the stream by dropping its outbox.
    async fn read(self, mailbox: &Mailbox) {
        let conn = mailbox.conn();
        if mailbox.send(Mail::Link(conn, self.outbox)).await.is_ok() {
            let unpack: fn(_) -> Result<Vec<PrimaryMessage>> = Vec::try_from;
            read_stream(mailbox.clone(), conn, self.stream, self.dropped, unpack, Mail::FromPrimary, |_| {}).await;
        }
    }
}

fn weigh(message: &BackupMessage) -> usize {
    match message {
        BackupMessage::Records { records, .. } => weigh_records(records),
        _ => 128,
    }
}
