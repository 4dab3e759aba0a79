//! What an operator does to a node: promote, resolve, exclude, end a session, stop.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tagalong::log::ClientId;
use tagalong::message::{NodeStatus, Role};
use tagalong::{AdminClient, Code, Error, Result};

use crate::status::summary;
use crate::{GapArg, parse_client, parse_endpoint, parse_seconds, policy, print};

/// How often a node is asked how far it is.
const POLL: Duration = Duration::from_millis(200);
/// A node that restarts may be away for so long before a wait gives up on it.
const AWAY_MAX: Duration = Duration::from_secs(30);

#[derive(Args)]
pub(crate) struct PromoteArgs {
    /// The backup.
    #[arg(value_parser = parse_endpoint)]
    endpoint: String,
    /// Though it was never in sync: you assert that the primary is lost for good.
    #[arg(long)]
    force: bool,
    /// Conclude without those who do not come; by default the recovery waits for them, or for `resolve`.
    #[arg(long, value_name = "GAPS", requires = "soft_s", requires = "hard_s")]
    conclude: Option<GapArg>,
    /// With --conclude: after so many seconds without progress, counted from the first report.
    #[arg(long, value_name = "S", value_parser = parse_seconds, requires = "conclude")]
    soft_s: Option<Duration>,
    /// With --conclude: after so many seconds in any case.
    #[arg(long, value_name = "S", value_parser = parse_seconds, requires = "conclude")]
    hard_s: Option<Duration>,
    /// Wait until the new reign is open, and say how far it is.
    #[arg(long)]
    wait: bool,
}

#[derive(Args)]
pub(crate) struct ResolveArgs {
    /// The recovering node.
    #[arg(value_parser = parse_endpoint)]
    endpoint: String,
    /// What becomes of what is missing.
    gaps: GapArg,
}

#[derive(Args)]
pub(crate) struct ClientArgs {
    /// The node.
    #[arg(value_parser = parse_endpoint)]
    endpoint: String,
    /// The client's id, as status prints it.
    #[arg(value_parser = parse_client)]
    client: ClientId,
}

#[derive(Args)]
pub(crate) struct StopArgs {
    /// The node.
    #[arg(value_parser = parse_endpoint)]
    endpoint: String,
}

pub(crate) async fn promote(args: PromoteArgs) -> Result<ExitCode> {
    let admin = AdminClient::connect(&args.endpoint).await?;
    let (soft, hard) = (args.soft_s.unwrap_or_default(), args.hard_s.unwrap_or_default());
    admin.promote(args.force, policy(args.conclude, soft, hard)).await?;
    if !args.wait {
        print(format!("{} is being promoted; `tagalong status --watch {0}` shows how far it is\n", args.endpoint));
        return Ok(ExitCode::SUCCESS);
    }
    let epoch = opened(&args.endpoint).await?.status.epoch;
    print(format!("{} is primary in epoch {epoch}\n", args.endpoint));
    Ok(ExitCode::SUCCESS)
}

/// Waits until the node is primary, and says what keeps it whenever that changes.
async fn opened(endpoint: &str) -> Result<NodeStatus> {
    let mut said = String::new();
    let mut away = None;
    loop {
        match status(endpoint).await {
            Ok(status) => {
                away = None;
                match (status.status.role, &status.failure) {
                    (Role::Primary, _) => return Ok(status),
                    (_, Some(failure)) => return Err(failure.clone()),
                    _ => {}
                }
                let now = status.recovery.as_ref().map(summary).unwrap_or_default();
                if now != said {
                    eprintln!("{now}");
                    said = now;
                }
            }
            // A node that dies in its recovery goes on with it when it is started again.
            Err(error) => {
                let since = *away.get_or_insert_with(tokio::time::Instant::now);
                if since.elapsed() > AWAY_MAX {
                    return Err(error);
                }
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn status(endpoint: &str) -> Result<NodeStatus> {
    AdminClient::connect(endpoint).await?.status().await
}

pub(crate) async fn resolve(args: ResolveArgs) -> Result<ExitCode> {
    AdminClient::connect(&args.endpoint).await?.resolve(args.gaps.into()).await.map_err(not_running)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn exclude(args: ClientArgs) -> Result<ExitCode> {
    AdminClient::connect(&args.endpoint).await?.exclude(args.client).await.map_err(not_running)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn end_session(args: ClientArgs) -> Result<ExitCode> {
    AdminClient::connect(&args.endpoint).await?.end_session(args.client).await?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn stop(args: StopArgs) -> Result<ExitCode> {
    AdminClient::connect(&args.endpoint).await?.stop().await?;
    print(format!("{} is stopping; it ends once everything is stable\n", args.endpoint));
    Ok(ExitCode::SUCCESS)
}

/// A recovery that concluded in the meantime is the commonest reason.
fn not_running(error: Error) -> Error {
    match error.code() {
        Code::InvalidArgument => {
            let why = format!("{}; `tagalong status` shows what the node is doing", error.message());
            Error::new(error.code(), why)
        }
        _ => error,
    }
}
