//! A client of the key-value store, for one command at a time.
//!
//! Without `--cache` the session lives as long as the process, which ends it in good order: it waits until what it
//! wrote is stable, since nobody would hold it afterwards. With `--cache` the directory keeps the session, and what is
//! held; the next run with it goes on, and first tells the outcome of what an earlier run left unanswered.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use tagalong::client::ClientEvent;
use tagalong::log::Level;
use tagalong::store::file::{FileCache, FileCacheOptions};
use tagalong::store::kv::{KvCommand, KvItem, KvQuery, KvReply};
use tagalong::{Code, Error, ErrorKind, ReadOptions, Result, TaggedClient, WriteOptions, WriteOutcome};

use crate::{LevelArg, parse_endpoint, parse_seconds, print};

#[derive(Subcommand)]
pub(crate) enum KvCommands {
    /// Set a key.
    Put {
        key: String,
        /// Its value; - reads stdin.
        value: String,
        #[command(flatten)]
        session: SessionArgs,
    },
    /// Print a key's value and a newline; exit status 1 if there is none.
    Get {
        key: String,
        #[command(flatten)]
        session: SessionArgs,
    },
    /// Remove a key, if it is there.
    Delete {
        key: String,
        #[command(flatten)]
        session: SessionArgs,
    },
    /// Append to a key's value; to nothing, if there is none.
    Append {
        key: String,
        /// What to append; - reads stdin.
        value: String,
        #[command(flatten)]
        session: SessionArgs,
    },
    /// Set or remove a key if its value is as expected; exit status 1 and the value on stderr if not.
    Cas {
        key: String,
        /// What has to be there; without this the key must not exist.
        #[arg(long)]
        expect: Option<String>,
        /// The new value; without this the key is removed.
        #[arg(long)]
        to: Option<String>,
        #[command(flatten)]
        session: SessionArgs,
    },
    /// Print the keys that begin with a prefix, one a line.
    List {
        #[arg(default_value = "")]
        prefix: String,
        /// At most so many.
        #[arg(long, default_value_t = u32::MAX)]
        limit: u32,
        /// Print the values too, behind a tab.
        #[arg(long)]
        values: bool,
        #[command(flatten)]
        session: SessionArgs,
    },
}

#[derive(Args)]
pub(crate) struct SessionArgs {
    /// Where a node of the service is; may be given again: primary and backup, in any order.
    #[arg(long = "endpoint", value_name = "ENDPOINT", required = true, value_parser = parse_endpoint)]
    endpoints: Vec<String>,
    /// Keep the session, and what is held, in this directory.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// The failure domain of this client.
    #[arg(long, default_value = "cli")]
    domain: String,
    /// The durability to wait for; the service's own applies where that is higher.
    #[arg(long)]
    level: Option<LevelArg>,
    /// Seconds until the outcome must be known.
    #[arg(long, value_name = "S", default_value = "30", value_parser = parse_seconds)]
    deadline: Duration,
}

pub(crate) async fn run(command: KvCommands) -> Result<ExitCode> {
    match command {
        KvCommands::Put { key, value, session } => write(session, KvCommand::put(key, input(value)?)).await,
        KvCommands::Append { key, value, session } => write(session, KvCommand::append(key, input(value)?)).await,
        KvCommands::Delete { key, session } => write(session, KvCommand::delete(key)).await,
        KvCommands::Cas { key, expect, to, session } => {
            write(session, KvCommand::compare_and_set(key, expect, to)).await
        }
        KvCommands::Get { key, session } => {
            let (client, left) = open(&session).await?;
            let reply = read(&client, &session, left, &KvQuery::get(&key)).await?;
            let code = match reply.value() {
                Some(value) => {
                    print([value, &b"\n"[..]].concat());
                    ExitCode::SUCCESS
                }
                None => {
                    eprintln!("there is no key {key}");
                    ExitCode::FAILURE
                }
            };
            leave(&client, &session, left).await;
            Ok(code)
        }
        KvCommands::List { prefix, limit, values, session } => {
            let (client, left) = open(&session).await?;
            list(&client, &session, left, &prefix, limit, values).await?;
            leave(&client, &session, left).await;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn input(value: String) -> Result<Vec<u8>> {
    if value != "-" {
        return Ok(value.into_bytes());
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// When the deadline passes.
type Until = tokio::time::Instant;

fn left(until: Until) -> Duration {
    until.saturating_duration_since(tokio::time::Instant::now())
}

/// Establishes the session, and tells the outcome of what an earlier run on the same cache left unanswered.
async fn open(args: &SessionArgs) -> Result<(TaggedClient, Until)> {
    // Beyond a year a deadline is as good as none, and must not overflow.
    let until = tokio::time::Instant::now() + args.deadline.min(Duration::from_secs(365 * 86_400));
    let mut builder = TaggedClient::builder(&args.domain).endpoints(&args.endpoints);
    if let Some(dir) = &args.cache {
        builder = builder.cache(FileCache::open(dir, FileCacheOptions::default())?);
    }
    let client = builder.start().await?;
    let earlier = client.unanswered();
    attach(&client, args, until).await?;
    for request in earlier {
        let outcome = tokio::time::timeout(left(until), client.outcome(request)).await;
        match outcome {
            Ok(outcome) => eprintln!("request {request} of an earlier run: {}", describe(&outcome?)),
            Err(_) => eprintln!("request {request} of an earlier run: not known yet"),
        }
    }
    Ok((client, until))
}

/// Waits for the session. With a single endpoint, a refusal that will not change ends that at once.
async fn attach(client: &TaggedClient, args: &SessionArgs, until: Until) -> Result<()> {
    let mut events = client.events();
    let mut trouble = None;
    loop {
        let event = tokio::select! {
            attached = client.attached() => return attached.map(|_| ()),
            event = events.next() => event,
            () = tokio::time::sleep_until(until) => {
                let silence = || {
                    let nodes = args.endpoints.join(", ");
                    Error::new(Code::Unavailable, format!("no session within {:?} at {nodes}", args.deadline))
                };
                return Err(trouble.unwrap_or_else(silence));
            }
        };
        match event {
            Some(ClientEvent::Refused(error)) => {
                let hopeless = matches!(error.kind(), ErrorKind::FixCall | ErrorKind::Report);
                if hopeless && args.endpoints.len() == 1 {
                    return Err(error);
                }
                trouble = Some(error);
            }
            Some(ClientEvent::Waiting(error)) => trouble = Some(error),
            Some(_) => {}
            None => return client.attached().await.map(|_| ()),
        }
    }
}

/// What an outcome means to whoever issued the command.
fn describe(outcome: &WriteOutcome) -> String {
    match outcome {
        WriteOutcome::Acknowledged { tag, met, reply, .. } => {
            let mut text = match KvReply::decode(reply) {
                Ok(KvReply::Done) => "done".to_owned(),
                Ok(KvReply::Length(length)) => format!("length {length}"),
                Ok(KvReply::Value(_)) => "not done: the value is another".to_owned(),
                Ok(KvReply::Malformed(why)) => format!("malformed: {why}"),
                Ok(other) => format!("{other:?}"),
                Err(error) => error.to_string(),
            };
            if let Some(tag) = tag {
                text += &format!(", entry {} of epoch {}", tag.lsn, tag.epoch);
                text += match met {
                    Level::Covered => ", covered",
                    Level::Stable => ", stable",
                    _ => "",
                };
                if !tag.protected {
                    text += ", not protected: held in the primary's own failure domain only";
                }
            }
            text
        }
        WriteOutcome::Superseded { .. } => "superseded: it was lost in a recovery, and may be issued again".to_owned(),
        WriteOutcome::Unknown { error, .. } => format!("unknown: {error}"),
        _ => "another outcome than this build knows".to_owned(),
    }
}

async fn write(args: SessionArgs, command: KvCommand) -> Result<ExitCode> {
    let (client, until) = open(&args).await?;
    let mut options = WriteOptions::default().deadline(left(until));
    if let Some(level) = args.level {
        options = options.level(level.into());
    }
    let outcome = client.write_opts(command.encode(), options).await?;
    let code = match &outcome {
        WriteOutcome::Acknowledged { reply, .. } => match KvReply::decode(reply)? {
            KvReply::Value(found) => {
                match found {
                    Some((value, version)) => {
                        eprintln!("not done: entry {version} set it to {}", String::from_utf8_lossy(&value));
                    }
                    None => eprintln!("not done: there is no such key"),
                }
                ExitCode::FAILURE
            }
            KvReply::Malformed(why) => return Err(Error::new(Code::InvalidArgument, why)),
            _ => {
                print(format!("{}\n", describe(&outcome)));
                ExitCode::SUCCESS
            }
        },
        WriteOutcome::Unknown { request, error } => {
            let why = match &args.cache {
                Some(dir) => format!(
                    "the outcome of request {request} is not known yet ({}); the next run with --cache {} tells",
                    error.message(),
                    dir.display()
                ),
                None => format!("the outcome is not known ({}): it may have been executed", error.message()),
            };
            return Err(Error::new(error.code(), why));
        }
        _ => return Err(Error::new(Code::Superseded, describe(&outcome))),
    };
    leave(&client, &args, until).await;
    Ok(code)
}

async fn read(client: &TaggedClient, args: &SessionArgs, until: Until, query: &KvQuery) -> Result<KvReply> {
    let mut options = ReadOptions::default().deadline(left(until));
    if let Some(level) = args.level {
        options = options.level(level.into());
    }
    match KvReply::decode(&client.read_opts(query.encode(), options).await?)? {
        KvReply::Malformed(why) => Err(Error::new(Code::InvalidArgument, why)),
        reply => Ok(reply),
    }
}

async fn list(
    client: &TaggedClient,
    args: &SessionArgs,
    until: Until,
    prefix: &str,
    mut limit: u32,
    values: bool,
) -> Result<()> {
    let mut query = KvQuery::list(prefix);
    while limit > 0 {
        let KvReply::List { items, more } = read(client, args, until, &query.clone().limit(limit)).await? else {
            return Err(Error::new(Code::Protocol, "the store answered a list with something else"));
        };
        for KvItem { key, value, .. } in &items {
            let line = if values { [key, &b"\t"[..], value, b"\n"].concat() } else { [key, &b"\n"[..]].concat() };
            print(line);
        }
        limit -= u32::try_from(items.len()).unwrap_or(u32::MAX).min(limit);
        match items.last() {
            Some(last) if more => query = query.after(&last.key),
            _ => break,
        }
    }
    Ok(())
}

/// Ends a session that lives in this process only.
async fn leave(client: &TaggedClient, args: &SessionArgs, until: Until) {
    if args.cache.is_some() {
        return;
    }
    // A close costs a moment even where nothing is left to wait for.
    let limit = left(until).max(Duration::from_secs(1));
    match tokio::time::timeout(limit, client.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => eprintln!("warning: the session ended otherwise: {error}"),
        Err(_) => eprintln!(
            "warning: not stable yet, and held by nobody when this process ends: it is lost if the primary is lost now, \
             and a recovery would wait for session {}. Use --cache DIR to hold what is written, or --level stable",
            client.id()
        ),
    }
}
