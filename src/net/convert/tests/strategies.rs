//! Any message, as the cores might say it. Boxed from headers upwards: nested strategies are large values, and several
//! of them overflow a test's stack.

use std::ops::Range;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::failure;
use crate::error::Error;
use crate::log::{
    Body, ClientId, ClusterId, Digest, Entry, Epoch, EpochStart, GapPolicy, GroupId, Header, Level, Lsn, NodeId,
    Origin, PLACES_MAX, Places, Record, Reign, Request, SessionInfo, SessionRole, Tag, Target, Time,
};
use crate::message::{
    Attach, BackupMessage, ClientFrame, ClientMessage, Hello, NodeFrame, NodeMessage, NodeStatus, Outcome, Payloads,
    PeerHello, PrimaryMessage, Query, QueryResult, RecoveryStatus, Report, ReportItem, Response, Role, SessionStatus,
    Status, Welcome, Write,
};
use crate::node::RecoveryPolicy;
use crate::share::{Mode, Share};

/// A record whose every field is fixed.
pub(super) fn plain_record(payload: Bytes) -> Record {
    let header = Header {
        epoch: Epoch { generation: 1, number: 2, node: NodeId(3) },
        lsn: Lsn(4),
        body: Body::Command,
        origin: Some(Origin { client: ClientId(5), request: Request(6) }),
        time: Time(7),
        answered: Request(5),
        length: u32::try_from(payload.len()).unwrap(),
        digest: Digest::crc32(&payload),
    };
    Record { entry: Entry { header, payload }, reply: Digest::crc32(b"reply") }
}

/// A tag whose every field but these is fixed.
pub(super) fn plain_tag(epoch: Epoch, stable: Lsn) -> Tag {
    let met = Level::Tagged;
    Tag { epoch, lsn: Lsn(9), time: Time(7), hold_until: Some(Lsn(9)), stable, protected: true, met }
}

/// A share whose every field but these is fixed.
pub(super) fn plain_share(epoch: Epoch, body: Bytes) -> Share {
    Share { epoch, id: 8, mode: Mode::Window, holder: ClientId(5), hold_until: Lsn(9), body }
}

/// A number: small ones, whose encoding is empty or a byte, as often as any.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..3_u64, any::<u64>()]
}

fn lsn() -> impl Strategy<Value = Lsn> {
    number().prop_map(Lsn)
}

fn request() -> impl Strategy<Value = Request> {
    number().prop_map(Request)
}

fn text() -> impl Strategy<Value = String> {
    "[a-zé☃ /:]{0,8}"
}

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

pub(super) fn client_id() -> impl Strategy<Value = ClientId> {
    any::<u128>().prop_map(ClientId)
}

fn cluster() -> impl Strategy<Value = ClusterId> {
    any::<u128>().prop_map(ClusterId)
}

fn group() -> impl Strategy<Value = GroupId> {
    any::<u128>().prop_map(GroupId)
}

fn node() -> impl Strategy<Value = NodeId> {
    any::<u64>().prop_map(NodeId)
}

fn epoch() -> impl Strategy<Value = Epoch> {
    let any =
        (any::<u32>(), number(), node()).prop_map(|(generation, number, node)| Epoch { generation, number, node });
    prop_oneof![1 => Just(Epoch::ZERO), 4 => any]
}

fn digest() -> impl Strategy<Value = Digest> {
    (0..=u8::MAX, number()).prop_map(|(algorithm, value)| Digest { algorithm, value })
}

fn level() -> impl Strategy<Value = Level> {
    select(vec![Level::Local, Level::Tagged, Level::Covered, Level::Stable])
}

fn session_role() -> impl Strategy<Value = SessionRole> {
    select(vec![SessionRole::Writer, SessionRole::Reader, SessionRole::Holder])
}

pub(super) fn gap_policy() -> impl Strategy<Value = GapPolicy> {
    select(vec![GapPolicy::Stop, GapPolicy::Skip])
}

pub(super) fn recovery_policy() -> impl Strategy<Value = RecoveryPolicy> {
    let conclude = (gap_policy(), number(), number()).prop_map(|(gaps, soft_us, hard_us)| RecoveryPolicy::Conclude {
        gaps,
        soft_us,
        hard_us,
    });
    prop_oneof![Just(RecoveryPolicy::Wait), conclude]
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![Just(Target::Own), node().prop_map(Target::Backup)]
}

fn ranges() -> impl Strategy<Value = Vec<Range<Lsn>>> {
    vec((lsn(), lsn()).prop_map(|(a, b)| a.min(b)..a.max(b)), 0..3)
}

fn error() -> impl Strategy<Value = Error> {
    (select(failure::ALL), text()).prop_map(|(code, message)| Error::new(code, message))
}

fn epoch_start() -> BoxedStrategy<EpochStart> {
    let clients = || vec(client_id(), 0..3);
    let recovery = (epoch(), lsn(), lsn(), of(gap_policy()), clients(), clients(), ranges());
    let service = (any::<u8>(), level(), any::<bool>(), target());
    (recovery, service)
        .prop_map(|(recovery, (f, lowest, log_before_send, target))| {
            let (previous, base, observed, policy, missing, excluded, gaps) = recovery;
            EpochStart { previous, base, observed, f, lowest, log_before_send, target, policy, missing, excluded, gaps }
        })
        .boxed()
}

fn body() -> BoxedStrategy<Body> {
    let open = (number(), text(), session_role())
        .prop_map(|(incarnation, domain, role)| Body::Open(SessionInfo { incarnation, domain, role }));
    prop_oneof![
        Just(Body::Command),
        Just(Body::Noop),
        open,
        Just(Body::Suspend),
        number().prop_map(Body::Resume),
        Just(Body::Close),
        Just(Body::Expire),
        target().prop_map(Body::Config),
        epoch_start().prop_map(|start| Body::EpochStart(Box::new(start))),
    ]
    .boxed()
}

fn header() -> BoxedStrategy<Header> {
    let origin = (client_id(), request()).prop_map(|(client, request)| Origin { client, request });
    (epoch(), lsn(), body(), of(origin), number(), request(), any::<u32>(), digest())
        .prop_map(|(epoch, lsn, body, origin, time, answered, length, digest)| Header {
            epoch,
            lsn,
            body,
            origin,
            time: Time(time),
            answered,
            length,
            digest,
        })
        .boxed()
}

fn records() -> BoxedStrategy<Vec<Record>> {
    let record = (header(), bytes(), digest())
        .prop_map(|(header, payload, reply)| Record { entry: Entry { header, payload }, reply });
    vec(record, 0..3).boxed()
}

fn hello() -> impl Strategy<Value = Hello> {
    (any::<u32>(), number(), of(cluster()), of(group()), epoch())
        .prop_map(|(version, features, cluster, group, epoch)| Hello { version, features, cluster, group, epoch })
}

fn attach() -> BoxedStrategy<Attach> {
    let session = (client_id(), number(), text(), session_role());
    let state = (epoch(), any::<bool>(), request(), epoch(), epoch(), lsn());
    (session, state, (number(), number()))
        .prop_map(|((client, incarnation, domain, role), state, (share_bytes, shares_held))| {
            let (epoch, fresh, from, oldest, observed_epoch, observed) = state;
            Attach {
                epoch,
                client,
                incarnation,
                domain,
                role,
                fresh,
                from,
                oldest,
                observed_epoch,
                observed,
                share_bytes,
                shares_held,
            }
        })
        .boxed()
}

fn client_frame() -> BoxedStrategy<ClientFrame> {
    let write = (request(), request(), level(), any::<bool>(), digest(), bytes()).prop_map(
        |(request, answered, level, withdrawn, digest, payload)| Write {
            request,
            answered,
            level,
            withdrawn,
            digest,
            payload,
        },
    );
    let query = (number(), level(), bytes()).prop_map(|(id, level, payload)| Query { id, level, payload });
    (epoch(), number(), vec(write, 0..3), vec(query, 0..3), any::<bool>())
        .prop_map(|(epoch, confirm, writes, queries, close)| ClientFrame { epoch, confirm, writes, queries, close })
        .boxed()
}

fn report() -> BoxedStrategy<Report> {
    let item = prop_oneof![
        (header(), of(digest())).prop_map(|(header, reply)| ReportItem::Held { header, reply }),
        (request(), any::<u32>(), digest(), request()).prop_map(|(request, length, digest, answered)| {
            ReportItem::InDoubt { request, length, digest, answered }
        }),
        epoch().prop_flat_map(places).prop_map(ReportItem::Places),
        header().prop_map(ReportItem::Header),
        (epoch(), number(), lsn(), any::<u32>()).prop_map(|(epoch, id, hold_until, length)| ReportItem::Share {
            epoch,
            id,
            hold_until,
            length
        }),
    ];
    (epoch(), vec(item, 0..4), (epoch(), lsn()), (epoch(), lsn()), any::<bool>())
        .prop_map(|(epoch, items, observed, stable, end)| Report { epoch, items, observed, stable, end })
        .boxed()
}

/// In a message of this epoch.
fn share(message: Epoch) -> impl Strategy<Value = Share> {
    let of_epoch = prop_oneof![Just(message), epoch()];
    let mode = select(vec![Mode::Stripe, Mode::Window]);
    (of_epoch, number(), mode, client_id(), lsn(), bytes())
        .prop_map(|(epoch, id, mode, holder, hold_until, body)| Share { epoch, id, mode, holder, hold_until, body })
}

pub(super) fn client_message() -> BoxedStrategy<ClientMessage> {
    let payloads = (epoch(), vec((request(), bytes()), 0..3)).prop_flat_map(|(epoch, items)| {
        vec(share(epoch), 0..3).prop_map(move |shares| Payloads { epoch, items: items.clone(), shares })
    });
    prop_oneof![
        hello().prop_map(ClientMessage::Hello),
        attach().prop_map(ClientMessage::Attach),
        client_frame().prop_map(ClientMessage::Frame),
        report().prop_map(ClientMessage::Report),
        payloads.prop_map(ClientMessage::Payloads),
    ]
    .boxed()
}

fn status() -> BoxedStrategy<Status> {
    let role = select(vec![Role::Backup, Role::Recovering, Role::Primary, Role::Deposed, Role::Stopped]);
    let state = (role, epoch(), vec(text(), 0..3));
    (any::<u32>(), number(), cluster(), group(), node(), text(), state)
        .prop_map(|(version, features, cluster, group, node, domain, (role, epoch, endpoints))| Status {
            version,
            features,
            cluster,
            group,
            node,
            domain,
            role,
            epoch,
            endpoints,
        })
        .boxed()
}

fn welcome() -> BoxedStrategy<Welcome> {
    let reign =
        (epoch(), lsn(), lsn(), ranges()).prop_map(|(epoch, start, base, gaps)| Reign { epoch, start, base, gaps });
    let service = (level(), any::<u8>(), any::<bool>(), number(), number(), number());
    (epoch(), lsn(), vec(reign, 0..3), service)
        .prop_map(|(epoch, stable, reigns, service)| {
            let (lowest, f, refuse_uncovered, window, window_bytes, command_bytes_max) = service;
            Welcome { epoch, stable, reigns, lowest, f, refuse_uncovered, window, window_bytes, command_bytes_max }
        })
        .boxed()
}

fn node_frame() -> BoxedStrategy<NodeFrame> {
    let result = prop_oneof![bytes().prop_map(Ok), error().prop_map(Err)];
    let result = (number(), lsn(), result).prop_map(|(id, lsn, result)| QueryResult { id, lsn, result });
    let settled = of(lsn());
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let frame = (epoch(), number(), lsn(), settled, vec(header(), 0..3), vec(result, 0..3), flags);
    frame
        .prop_flat_map(|(epoch, seq, stable, settled, manifest, results, (prompt, short, closed))| {
            let of_frame = (vec(share(epoch), 0..3), vec(response(epoch, stable), 0..4), vec(places(epoch), 0..4));
            of_frame.prop_map(move |(shares, responses, places)| NodeFrame {
                epoch,
                seq,
                stable,
                settled: settled.unwrap_or(stable),
                manifest: manifest.clone(),
                places,
                shares,
                prompt,
                short,
                responses,
                results: results.clone(),
                closed,
            })
        })
        .boxed()
}

fn places(epoch: Epoch) -> impl Strategy<Value = Places> {
    let places = (lsn(), 1..=PLACES_MAX, any::<u64>(), bytes());
    places.prop_map(move |(first, count, time, who)| Places { epoch, first, count, time: Time(time), who })
}

/// In a frame of this epoch with this checkpoint. It says something: a tag, an outcome, or both.
fn response(frame: Epoch, stable: Lsn) -> impl Strategy<Value = Response> {
    let of_epoch = prop_oneof![Just(frame), epoch()];
    let tag = (of_epoch, lsn(), number(), of(lsn()), any::<bool>(), level()).prop_map(
        move |(epoch, lsn, time, hold_until, protected, met)| Tag {
            epoch,
            lsn,
            time: Time(time),
            hold_until,
            stable,
            protected,
            met,
        },
    );
    let outcome = prop_oneof![bytes().prop_map(Outcome::Reply), Just(Outcome::Superseded)];
    (request(), of(tag), of(outcome))
        .prop_filter("a response says something", |(_, tag, outcome)| tag.is_some() || outcome.is_some())
        .prop_map(|(request, tag, outcome)| Response { request, tag, outcome })
}

pub(super) fn node_message() -> BoxedStrategy<NodeMessage> {
    prop_oneof![
        status().prop_map(NodeMessage::Status),
        error().prop_map(NodeMessage::Waiting),
        (epoch(), epoch(), lsn()).prop_map(|(epoch, of, base)| NodeMessage::RollCall { epoch, of, base }),
        (epoch(), vec(request(), 0..4), vec(number(), 0..4)).prop_map(|(epoch, requests, shares)| NodeMessage::Pull {
            epoch,
            requests,
            shares
        }),
        welcome().prop_map(NodeMessage::Welcome),
        node_frame().prop_map(NodeMessage::Frame),
        error().prop_map(NodeMessage::Refused),
    ]
    .boxed()
}

fn peer_hello() -> BoxedStrategy<PeerHello> {
    let identity = (any::<u32>(), number(), of(cluster()), of(group()), node(), text(), text());
    let state = (lsn(), epoch(), epoch(), any::<bool>());
    (identity, state)
        .prop_map(|(identity, (end, last, promised, in_sync))| {
            let (version, features, cluster, group, node, domain, endpoint) = identity;
            PeerHello { version, features, cluster, group, node, domain, endpoint, end, last, promised, in_sync }
        })
        .boxed()
}

pub(super) fn backup_message() -> BoxedStrategy<BackupMessage> {
    prop_oneof![
        peer_hello().prop_map(BackupMessage::Hello),
        (epoch(), lsn(), epoch()).prop_map(|(epoch, end, last)| BackupMessage::Promised { epoch, end, last }),
        (epoch(), records()).prop_map(|(epoch, records)| BackupMessage::Records { epoch, records }),
        (epoch(), lsn(), number(), any::<bool>()).prop_map(|(epoch, durable, echo, in_sync)| BackupMessage::Ack {
            epoch,
            durable,
            echo,
            in_sync
        }),
        error().prop_map(BackupMessage::Failed),
    ]
    .boxed()
}

pub(super) fn primary_message() -> BoxedStrategy<PrimaryMessage> {
    prop_oneof![
        (any::<u32>(), cluster(), group(), node(), text()).prop_map(|(version, cluster, group, node, endpoint)| {
            PrimaryMessage::Welcome { version, cluster, group, node, endpoint }
        }),
        epoch().prop_map(|epoch| PrimaryMessage::Promise { epoch }),
        (epoch(), lsn()).prop_map(|(epoch, from)| PrimaryMessage::Fetch { epoch, from }),
        (epoch(), lsn(), lsn(), number(), records()).prop_map(|(epoch, base, stable, echo, records)| {
            PrimaryMessage::Append { epoch, base, stable, echo, records: records.into() }
        }),
        epoch().prop_map(|epoch| PrimaryMessage::Grant { epoch }),
        error().prop_map(PrimaryMessage::Refused),
    ]
    .boxed()
}

fn session_status() -> BoxedStrategy<SessionStatus> {
    let holds = (number(), number(), number());
    (client_id(), text(), session_role(), text(), any::<bool>(), lsn(), holds)
        .prop_map(|(client, domain, role, state, connected, last, holds)| {
            let (held_entries, held_bytes, share_bytes) = holds;
            SessionStatus { client, domain, role, state, connected, last, held_entries, held_bytes, share_bytes }
        })
        .boxed()
}

fn recovery_status() -> BoxedStrategy<RecoveryStatus> {
    let water = (text(), lsn(), lsn(), lsn());
    let people = (any::<u32>(), any::<u32>(), vec(client_id(), 0..3), vec(client_id(), 0..3));
    let loss = (number(), number(), ranges(), number(), of(error()));
    let shared = (number(), number(), number());
    (water, people, loss, shared)
        .prop_map(|((phase, base, observed, known), people, loss, (pulled_shares, shares, decoded))| {
            let (reported, roster, awaited, accused) = people;
            let (pulled_bytes, wanted_bytes, missing, lost_by_stop, conflict) = loss;
            RecoveryStatus {
                phase,
                base,
                observed,
                known,
                reported: reported as usize,
                roster: roster as usize,
                awaited,
                pulled_bytes,
                wanted_bytes,
                pulled_shares,
                shares,
                decoded,
                missing,
                lost_by_stop,
                conflict,
                accused,
            }
        })
        .boxed()
}

pub(super) fn node_status() -> BoxedStrategy<NodeStatus> {
    let water = (status(), lsn(), lsn(), lsn(), target());
    let delta = (number(), number(), number(), number(), any::<bool>(), any::<bool>());
    let coverage = (lsn(), any::<u8>(), any::<bool>(), number(), number());
    let covering = (number(), number(), number());
    let rest = (vec(session_status(), 0..3), of(recovery_status()), of(error()));
    (water, delta, (coverage, covering), rest)
        .prop_map(|((status, head, logged, stable, target), delta, coverage, (sessions, recovery, failure))| {
            let (delta_entries, delta_bytes, delta_age_us, waiting_writes, in_sync, connected) = delta;
            let ((covered, f, short, shares, share_bytes), (covered_entries, fill_us, confirm_us)) = coverage;
            NodeStatus {
                status,
                head,
                logged,
                stable,
                covered,
                f,
                short,
                shares,
                share_bytes,
                covered_entries,
                fill_us,
                confirm_us,
                target,
                delta_entries,
                delta_bytes,
                delta_age_us,
                waiting_writes,
                in_sync,
                connected,
                sessions,
                recovery,
                failure,
            }
        })
        .boxed()
}
