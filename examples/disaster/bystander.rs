//! Those who take part and write nothing: holders, which keep shares for others, and passers-by, whose sessions open and
//! close all the time.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::json;
use tagalong::TaggedClient;
use tagalong::client::ClientSettings;
use tagalong::log::SessionRole;
use tagalong::net::TaggedClientBuilder;

use crate::Result;
use crate::journal::micros;
use crate::ledger::Question;
use crate::process::{orders, tell};

/// A session may take this long to be established; a recovery counts in.
const ATTACH: Duration = Duration::from_secs(60);
/// A passer-by stays away this long.
const AWAY: Duration = Duration::from_millis(20);

/// What a bystander is told when it is started.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct BystanderArgs {
    /// Its failure domain.
    #[arg(long)]
    pub(crate) domain: String,
    /// Where nodes may be found.
    #[arg(long)]
    pub(crate) endpoint: Vec<String>,
    /// How many bytes of shares it takes; the library's default without.
    #[arg(long)]
    pub(crate) share_bytes: Option<u64>,
}

impl BystanderArgs {
    fn builder(&self) -> TaggedClientBuilder {
        let defaults = ClientSettings::default();
        let share_bytes_max = self.share_bytes.unwrap_or(defaults.share_bytes_max);
        let builder = TaggedClient::builder(&self.domain).endpoints(self.endpoint.clone()).connect_within(ATTACH);
        builder.settings(ClientSettings { share_bytes_max, ..defaults })
    }
}

/// Keeps shares until it is told to stop.
pub(crate) async fn hold(args: BystanderArgs) -> Result<()> {
    let mut orders = orders()?;
    let holder = args.builder().role(SessionRole::Holder).connect().await?;
    tell(&json!({ "event": "attached", "session": holder.id().to_string() }));
    while orders.recv().await.is_some_and(|order| order != "stop") {}
    holder.close().await?;
    tell(&json!({ "event": "finished" }));
    Ok(())
}

/// Opens a session, reads, and closes it, again and again until it is told to stop.
pub(crate) async fn pass_by(args: BystanderArgs) -> Result<()> {
    let mut orders = orders()?;
    tell(&json!({ "event": "attached", "session": "" }));
    while orders.recv().await.is_some_and(|order| order != "start") {}
    let mut opens = Histogram::<u64>::new_with_max(micros(ATTACH), 3)?;
    loop {
        let asked = Instant::now();
        // Every time somebody else, as far as the service knows.
        let passer = args.builder().connect().await?;
        opens.saturating_record(micros(asked.elapsed()));
        passer.read(Question::Get("list/00/000000".into()).encode()).await?;
        passer.close().await?;
        tell(&json!({ "event": "progress", "sessions": opens.len() }));
        tokio::select! {
            order = orders.recv() => if order.is_none_or(|order| order == "stop") { break },
            () = tokio::time::sleep(AWAY) => {}
        }
    }
    tell(&json!({ "event": "finished", "sessions": opens.len(), "open_p50_us": opens.value_at_quantile(0.5) }));
    Ok(())
}
