//! The drill of one mode, from the first process to the verdict. A disaster rolls:
//!
//! ```text
//!  start ── load ───────┬── cut ──────┬─ SIGKILL ─ promote ── rebuilt ── load ── stop ── flush, close ── check
//!                       │ the link,   │ and the primary's
//!                       │ wire lost   │ folder is gone, with
//!        half the time ─┘             │ --kill-clients more
//!                                     └─ --cut-before-ms later
//! ```
//!
//! Where more are dead than the mode can do without, the recovery has to wait; when it was seen to, it is concluded by
//! `Stop`, as an operator would, and what its report names is what may be missing.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::Value;
use tagalong::log::GapPolicy;
use tagalong::message::{NodeStatus, Role, SessionStatus};
use tagalong::node::RecoveryPolicy;

use crate::Result;
use crate::audit::audit;
use crate::checker::{Named, Verdict, check};
use crate::journal::{Clock, Journal, Line};
use crate::report::{Mode, Pace, Row, clients, grouped};
use crate::screen::Screen;
use crate::service::{Plan, Service, Traffic};
use crate::source::{Chunk, Source};

/// The first part of the load is not measured.
const WARM_UP: Duration = Duration::from_millis(500);
/// At least so much load goes on after the recovery.
const AFTERWARDS: Duration = Duration::from_secs(1);
/// How often the parent looks.
const LOOK: Duration = Duration::from_millis(50);
/// How often it looks at a recovery: first, and at most.
const LOOKS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(320));
/// A status that does not come within this is done without.
const STATUS: Duration = Duration::from_millis(500);
/// A recovery may take this long.
const RECOVERY: Duration = Duration::from_secs(120);
/// So long the dead are waited for before they are given up.
const PATIENCE: Duration = Duration::from_secs(2);
/// Clients may take this long to store what is left, and to be rid of all they hold.
const DRAIN: Duration = Duration::from_secs(300);

/// How the primary's site ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    /// How long before it the link is cut.
    pub(crate) cut_before: Duration,
    /// Whether the clients are cut off with it, and hear no farewell of the primary's kernel.
    pub(crate) silent: bool,
    /// How many clients are killed with it, and what they held is gone.
    pub(crate) kills: usize,
    /// How many more are killed with it, on caches that stay.
    pub(crate) deaths: usize,
    /// How many more are killed well before it, and what they held is gone.
    pub(crate) early: usize,
    /// Whether those come back, on their caches.
    pub(crate) return_after: Option<Duration>,
}

impl End {
    /// How many clients are dead once everybody is back who comes back.
    fn left_dead(&self) -> usize {
        self.kills + if self.return_after.is_none() { self.deaths } else { 0 }
    }
}

/// The longest latency that is told apart from a longer one.
const LATENCY_MAX_US: u64 = 3_600_000_000;

/// Phases of a recovery in order, with the time they took.
type Phases = Vec<(String, Duration)>;

/// When things happened, in microseconds of the journals' clock.
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    measured: u64,
    cut: u64,
    killed: u64,
    promoted: u64,
    opened: u64,
}

/// What was seen of the disaster from outside.
#[derive(Clone, Debug, Default)]
struct Disaster {
    moments: Moments,
    wire_bytes: u64,
    delta_entries: u64,
    delta_bytes: u64,
    /// What the links carried while the load was measured.
    traffic: Traffic,
    /// Shares that clients kept at the end, and their bytes.
    kept: (u64, u64),
    /// Entries past the backup's own log that the recovery put there.
    rebuilt: u64,
    /// Of those, how many only shares supplied; and from how many shares.
    decoded: (u64, u64),
    /// What the report of the recovery names.
    named: Named,
    /// Sessions without which the recovery was concluded, by the names people give them.
    missing: Vec<String>,
    /// How long the recovery was seen to wait for somebody's decision.
    waited: Option<Duration>,
    /// What the recovery was doing, and for how long, as far as looking now and then can tell.
    phases: Phases,
}

/// Runs the drill.
pub(crate) async fn run(plan: Plan, source: &Source, end: End, quiet: bool) -> Result<Row> {
    let screen = Screen::new(plan.mode.name(), plan.load, quiet);
    screen.phase("starting the processes");
    let mut service = Service::start(plan).await?;
    let mode = service.plan.mode;

    screen.phase("load");
    service.begin().await?;
    let started = Instant::now();
    let disaster = bring_disaster(&mut service, &screen, started, end).await?;
    let rest = service.plan.load.saturating_sub(started.elapsed()).max(AFTERWARDS);
    watch(&mut service, &screen, started, Instant::now() + rest, "load on the new primary").await?;

    screen.phase("stopping: the rest of the files, and everything stable");
    let sessions = service.finish(DRAIN).await?;
    screen.phase("checking every journal against what survived");
    let audit = audit(&service.backup.endpoint, source).await?;
    service.backup.finish().await?;
    let journals = service.journals()?;
    let verdict = tokio::task::block_in_place(|| check(&journals, &audit.survivor, &disaster.named));
    let (different, changed) = audit.comparison.different(excused(&service, &journals, &disaster, &verdict));
    let moments = disaster.moments;
    let nobody = service.living().next().is_none();
    let first = first_after(&journals, &disaster).or_else(|| nobody.then_some(moments.opened));
    let since = |at: u64| first.map(|first| Duration::from_micros(first.saturating_sub(at)));
    Ok(Row {
        mode,
        f: if mode == Mode::Covered { service.plan.f } else { 0 },
        killed: end.kills,
        pace: pace(&journals, moments.measured, moments.cut)?,
        verdict,
        recovery: since(moments.killed),
        promotion: since(moments.promoted),
        waited: disaster.waited,
        by_policy: disaster.named.by_policy,
        delta_entries: disaster.delta_entries,
        delta_bytes: disaster.delta_bytes,
        rebuilt: disaster.rebuilt,
        decoded: disaster.decoded,
        wire_bytes: disaster.wire_bytes,
        traffic: disaster.traffic,
        kept: disaster.kept,
        sessions,
        files: source.files.len(),
        bytes: source.bytes(),
        different,
        changed,
        missing: disaster.missing,
        phases: disaster.phases,
    })
}

/// Which parts of the files need not be there: what the dead did not get to store, and what is lost, and named.
fn excused<'a>(
    service: &'a Service,
    journals: &'a [Journal],
    disaster: &Disaster,
    verdict: &'a Verdict,
) -> impl Fn(Chunk) -> bool + 'a {
    let clients = service.plan.clients;
    let dead: HashSet<u64> =
        service.clients.iter().filter(|client| client.is_dead).map(|client| client.number).collect();
    let mut stored = HashSet::new();
    for journal in journals.iter().filter(|journal| dead.contains(&journal.client)) {
        let mut keys = HashMap::new();
        for line in &journal.lines {
            match line {
                Line::Issued { serial, key, .. } => drop(keys.insert(*serial, key.as_str())),
                Line::Acknowledged { serial, .. } => stored.extend(keys.get(serial).copied()),
                _ => {}
            }
        }
    }
    let by_policy = disaster.named.by_policy;
    move |chunk| {
        let key = chunk.key();
        let unstored = dead.contains(&Source::owner(chunk.file, clients)) && !stored.contains(key.as_str());
        unstored || (by_policy && verdict.lost_keys.contains(&key))
    }
}

/// Load for half of its time, then the cut, the kill, the promotion, until the new reign has opened.
async fn bring_disaster(service: &mut Service, screen: &Screen, started: Instant, end: End) -> Result<Disaster> {
    let clock = Clock::new();
    let mut disaster = Disaster::default();
    watch(service, screen, started, started + WARM_UP, "load").await?;
    let (measured, before) = (clock.now(), service.traffic());
    if end.early > 0 {
        watch(service, screen, started, started + service.plan.load / 4, "load").await?;
        kill_early(service, screen, started, end).await?;
    }
    watch(service, screen, started, started + service.plan.load / 2, "load").await?;

    let mut moments = Moments { measured, cut: clock.now(), ..Moments::default() };
    disaster.traffic = service.traffic() - before;
    disaster.wire_bytes = service.link.cut();
    let lost = grouped(disaster.wire_bytes);
    screen.phase(&format!("the link is cut, {lost} bytes on the wire are gone; the load goes on"));
    watch(service, screen, started, Instant::now() + end.cut_before, "load, and the backup is out of reach").await?;

    // Asked just before the end; a primary too busy to answer is killed all the same.
    let status = tokio::time::timeout(STATUS, service.primary.admin.status()).await;
    if let Ok(Ok(status)) = status {
        (disaster.delta_entries, disaster.delta_bytes) = (status.delta_entries, status.delta_bytes);
        disaster.kept = (status.shares, status.share_bytes);
    }
    if end.silent {
        service.near.cut();
    }
    moments.killed = clock.now();
    service.kill(end.kills, end.deaths).await?;
    let who = match end.kills {
        0 => ", folder deleted,".into(),
        kills => format!(" and {}, folders deleted,", clients(kills)),
    };
    let delta = grouped(disaster.delta_entries);
    screen.phase(&format!("SIGKILL for the primary{who} with a delta of {delta} entries; promoting"));

    moments.promoted = clock.now();
    let promoted = Instant::now();
    service.backup.admin.promote(false, RecoveryPolicy::Wait).await?;
    if await_the_dead(service, screen, started, end).await? {
        disaster.waited = Some(promoted.elapsed());
    }
    let (opened, phases) = await_recovery(service, screen, started).await?;
    moments.opened = clock.now();
    // The cable is mended, long after: whoever hung on it learns that the other end is gone.
    service.link.close();
    let told = |what: &str| opened[what].as_u64().ok_or_else(|| format!("an opening without `{what}`"));
    disaster.rebuilt = told("start")?.saturating_sub(told("base")? + 1);
    disaster.decoded = (told("decoded")?, told("shares")?);
    disaster.named = named(service, &opened)?;
    let missing = opened["missing"].as_array().into_iter().flatten();
    disaster.missing = missing.filter_map(Value::as_str).map(|session| name_of(service, session)).collect();
    disaster.missing.sort_by_key(|name| (name.len(), name.clone()));
    (disaster.moments, disaster.phases) = (moments, phases);
    Ok(disaster)
}

/// Kills some clients, and waits until the backup knows that nobody has to wait for them.
async fn kill_early(service: &mut Service, screen: &Screen, started: Instant, end: End) -> Result<()> {
    let first = end.kills + end.deaths;
    let dying = first..first + end.early;
    screen.phase(&format!("SIGKILL for {}, folders deleted; the load goes on", clients(end.early)));
    service.kill_clients(dying.clone()).await?;
    let dead: Vec<String> = service.clients[dying].iter().map(|client| client.session.clone()).collect();
    let deadline = Instant::now() + RECOVERY;
    loop {
        let status = service.backup.admin.status().await?;
        let on = |client: &SessionStatus| client.state == "on" && dead.contains(&client.client.to_string());
        if !status.sessions.iter().any(on) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("the killed clients were not suspended within {RECOVERY:?}").into());
        }
        watch(service, screen, started, Instant::now() + LOOK, "load, and some clients are dead").await?;
    }
}

/// What the report of the recovery names.
fn named(service: &Service, opened: &Value) -> Result<Named> {
    let told = |what: &str| opened[what].as_u64().ok_or_else(|| format!("an opening without `{what}`"));
    let missing: HashSet<&str> = opened["missing"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let clients = service.clients.iter().filter(|client| missing.contains(client.session.as_str()));
    let range = |gap: &Value| Some(gap[0].as_u64()?..gap[1].as_u64()?);
    let gaps = opened["gaps"].as_array().into_iter().flatten().map(range).collect::<Option<_>>();
    Ok(Named {
        by_policy: opened["by_policy"].as_bool().ok_or("an opening without a word on policy")?,
        epoch: told("epoch")?,
        start: told("start")?,
        observed: told("observed")?,
        gaps: gaps.ok_or("a gap that is no range")?,
        missing: clients.map(|client| client.number).collect(),
    })
}

/// What an operator calls a session.
fn name_of(service: &Service, session: &str) -> String {
    if let Some(client) = service.clients.iter().find(|client| client.session == session) {
        return format!("client {}", client.number);
    }
    let mut bystanders = service.holders.iter().chain(&service.passers);
    let bystander = bystanders.find(|bystander| bystander.session == session);
    bystander.map_or_else(|| format!("session {session}"), |bystander| bystander.name.clone())
}

/// Sees that nothing is concluded without the dead where that needs a decision, brings back those who come back, and
/// decides about the others. Returns whether a decision was needed.
async fn await_the_dead(service: &mut Service, screen: &Screen, started: Instant, end: End) -> Result<bool> {
    let (mode, f) = (service.plan.mode, service.plan.f);
    if let Some(away) = end.return_after.filter(|_| end.deaths > 0) {
        see_it_wait(service, screen, started, away, mode.waits_for(end.kills + end.deaths, f)).await?;
        screen.phase("the killed clients come back, on their caches");
        service.revive_clients().await?;
    }
    if !mode.waits_for(end.left_dead(), f) {
        return Ok(false);
    }
    see_it_wait(service, screen, started, PATIENCE, true).await?;
    // Whoever lives is to be heard, however long that takes.
    let dead: Vec<String> =
        service.clients.iter().filter(|client| client.is_dead).map(|client| client.session.clone()).collect();
    let deadline = Instant::now() + RECOVERY;
    let recovery = loop {
        let status = service.backup.admin.status().await?;
        let Some(recovery) = status.recovery.as_ref().filter(|_| status.status.role != Role::Primary) else {
            return Err("the recovery was concluded without the clients that were killed".into());
        };
        if recovery.awaited.iter().all(|session| dead.contains(&session.to_string())) {
            break recovery.clone();
        }
        if Instant::now() > deadline {
            return Err(format!("clients that live did not report within {RECOVERY:?}: {}", describe(&status)).into());
        }
        screen.at(started.elapsed(), describe(&status));
        tokio::time::sleep(LOOK).await;
    };
    let awaited: Vec<String> = recovery.awaited.iter().map(|session| name_of(service, &session.to_string())).collect();
    screen.phase(&format!(
        "{} never came: concluding, {} entries will be lost as far as is known",
        awaited.join(", "),
        recovery.lost_by_stop
    ));
    service.backup.admin.resolve(GapPolicy::Stop).await?;
    Ok(true)
}

/// Looks at the recovery for a while; where somebody is missing that it cannot do without, it must not be over.
async fn see_it_wait(
    service: &mut Service,
    screen: &Screen,
    started: Instant,
    time: Duration,
    must_wait: bool,
) -> Result<()> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        let status = service.backup.admin.status().await?;
        if status.status.role == Role::Primary && must_wait {
            return Err("the recovery was concluded without the clients that were killed".into());
        }
        screen.at(started.elapsed(), describe(&status));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Watches the recovery until the backup is the primary; returns what that says of it, and how long the phases took.
async fn await_recovery(service: &mut Service, screen: &Screen, started: Instant) -> Result<(Value, Phases)> {
    let deadline = Instant::now() + RECOVERY;
    let (mut phases, mut looked, mut pause) = (Phases::new(), Instant::now(), LOOKS.0);
    loop {
        service.check()?;
        // A look makes the node count what is missing: the longer it takes, the less often.
        let opened = service.backup.process.hear("opened", pause).await?;
        let (now, past) = (Instant::now(), looked);
        looked = now;
        if let Some((_, time)) = phases.last_mut() {
            *time += now - past;
        }
        if let Some(opened) = opened {
            return Ok((opened, phases));
        }
        pause = (pause * 2).min(LOOKS.1);
        let status = service.backup.admin.status().await?;
        if now > deadline {
            return Err(format!("the recovery was not through within {RECOVERY:?}: {}", describe(&status)).into());
        }
        let phase = status.recovery.as_ref().map_or("opening", |recovery| recovery.phase.as_str());
        if phases.last().is_none_or(|(last, _)| last != phase) {
            phases.push((phase.to_owned(), Duration::ZERO));
        }
        screen.at(started.elapsed(), describe(&status));
    }
}

fn describe(status: &NodeStatus) -> String {
    let Some(recovery) = &status.recovery else {
        return format!("{:?}", status.status.role);
    };
    let mut text = format!(
        "rebuilding ({}): {} of {} clients have reported, {} of {} bytes pulled",
        recovery.phase, recovery.reported, recovery.roster, recovery.pulled_bytes, recovery.wanted_bytes
    );
    if !recovery.missing.is_empty() {
        text += &format!(", {} gaps", recovery.missing.len());
    }
    if let Some(conflict) = &recovery.conflict {
        text += &format!(", {conflict}");
    }
    text
}

/// Lets the load go on until then.
async fn watch(service: &mut Service, screen: &Screen, started: Instant, until: Instant, what: &str) -> Result<()> {
    loop {
        service.check()?;
        service.backup.process.check()?;
        let (acked, reads) = (grouped(service.progress("acked")), grouped(service.progress("reads")));
        let (held, left) = (service.progress("cached"), service.progress("chunks_left"));
        let how = format!("{what}: {acked} writes, {reads} reads, {held} held by the clients, {left} chunks to go");
        screen.at(started.elapsed(), how);
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

/// What a service without a disaster costs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) pace: Pace,
    pub(crate) traffic: Traffic,
    /// What coverage adds to an entry's way, in microseconds on average: the wait for others in its stripe, and the
    /// confirmations.
    pub(crate) fill_us: u64,
    pub(crate) confirm_us: u64,
    /// Sessions that opened and closed meanwhile.
    pub(crate) sessions: u64,
}

/// Runs a service without a disaster.
pub(crate) async fn measure(plan: Plan, quiet: bool, title: &str) -> Result<Cost> {
    let screen = Screen::new(title, plan.load, quiet);
    let mut service = Service::start(plan).await?;
    let clock = Clock::new();
    service.begin().await?;
    let started = Instant::now();
    let until = started + service.plan.load;
    watch(&mut service, &screen, started, started + WARM_UP, "warming up").await?;
    let covering = service.primary.admin.status().await?;
    let (measured, before) = (clock.now(), service.traffic());
    watch(&mut service, &screen, started, until, "measuring").await?;
    let (end, after) = (clock.now(), service.traffic());
    let covered = service.primary.admin.status().await?;
    let average = |of: fn(&NodeStatus) -> u64| {
        let entries = covered.covered_entries - covering.covered_entries;
        (of(&covered) - of(&covering)).checked_div(entries).unwrap_or_default()
    };
    let sessions = service.finish(DRAIN).await?;
    // Nothing of it is wanted any more: the rest is killed.
    let pace = pace(&service.journals()?, measured, end)?;
    let (fill_us, confirm_us) = (average(|status| status.fill_us), average(|status| status.confirm_us));
    Ok(Cost { pace, traffic: after - before, fill_us, confirm_us, sessions })
}

/// Latencies and throughput of what was issued and acknowledged between two moments.
fn pace(journals: &[Journal], from: u64, upto: u64) -> Result<Pace> {
    let mut latencies = Histogram::<u64>::new_with_max(LATENCY_MAX_US, 3)?;
    let lines = journals.iter().flat_map(|journal| &journal.lines);
    for line in lines {
        let Line::Acknowledged { at, latency, .. } = line else {
            continue;
        };
        if *at <= upto && at.saturating_sub(*latency) >= from {
            latencies.saturating_record(*latency);
        }
    }
    let span = Duration::from_micros(upto.saturating_sub(from)).as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let writes_per_s = if span > 0.0 { latencies.len() as f64 / span } else { 0.0 };
    Ok(Pace {
        writes: latencies.len(),
        writes_per_s,
        p50_us: latencies.value_at_quantile(0.5),
        p99_us: latencies.value_at_quantile(0.99),
        max_us: latencies.max(),
    })
}

/// When the first write was acknowledged by the new primary.
fn first_after(journals: &[Journal], disaster: &Disaster) -> Option<u64> {
    let lines = journals.iter().flat_map(|journal| &journal.lines);
    let times = lines.filter_map(|line| match line {
        Line::Acknowledged { at, epoch, .. } => {
            // A reply without a tag tells no epoch; after the promotion there is only one to come from.
            let is_after = if *epoch > 0 { *epoch >= disaster.named.epoch } else { *at > disaster.moments.promoted };
            (is_after && *at > disaster.moments.killed).then_some(*at)
        }
        _ => None,
    });
    times.min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Reply;

    fn acknowledged(at: u64, latency: u64, epoch: u64) -> Line {
        let reply = Reply { index: 1, chain: 1, version: 1, done: true };
        Line::Acknowledged { serial: 1, at, latency, epoch, lsn: 1, reply }
    }

    #[test]
    fn only_what_began_and_ended_in_between_is_measured() {
        let lines = vec![acknowledged(90, 50, 1), acknowledged(60_150, 60_000, 1), acknowledged(100_001, 10, 1)];
        let pace = pace(&[Journal { client: 0, lines }], 100, 100_000).expect("a histogram");
        let is_near = |us: u64| (59_900..=60_100).contains(&us);
        assert!(is_near(pace.p50_us) && is_near(pace.p99_us), "{pace:?}");
        assert!((pace.writes_per_s - 10.01).abs() < 0.01, "{pace:?}");
    }

    #[test]
    fn the_first_acknowledgement_of_the_new_reign_ends_the_recovery() {
        let moments = Moments { killed: 100, promoted: 110, ..Moments::default() };
        let named = Named { epoch: 2, ..Named::default() };
        let disaster = Disaster { moments, named, ..Disaster::default() };
        let lines = vec![acknowledged(101, 5, 1), acknowledged(130, 40, 2), acknowledged(120, 40, 1)];
        assert_eq!(first_after(&[Journal { client: 0, lines }], &disaster), Some(130));
        let lines = vec![acknowledged(105, 5, 0), acknowledged(140, 40, 0)];
        assert_eq!(first_after(&[Journal { client: 0, lines }], &disaster), Some(140), "without tags");
    }
}
