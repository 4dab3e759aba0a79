//! What holders keep for others, and hand over after a disaster: bodies in the clear, symbols that were solved, bodies
//! under seal; and the decoder that solves them.

use bytes::Bytes;
use tagalong::error::{Code, Result};
use tagalong::log::{Epoch, Lsn, NodeId};
use tagalong::share::body::{MEMBERS_MAX, Plain, SPAN_MAX, decode_symbol, encode_symbol};
use tagalong::share::decode::{Decoder, Inserted};

use super::heap;
use super::input::Input;

pub(crate) const EPOCH: Epoch = Epoch { generation: 0, number: 1, node: NodeId(1) };

fn plain(bytes: &Bytes) -> Option<Plain> {
    // A window's map names up to 8 members a byte.
    match heap::within(bytes, 4096, 256, || Plain::decode(EPOCH, bytes)) {
        Ok(plain) => Some(plain),
        Err(error) => {
            assert!(matches!(error.code(), Code::Corrupt | Code::UnknownKind | Code::WrongVersion), "{error}");
            None
        }
    }
}

pub(crate) fn share_bodies(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Some(body) = plain(&bytes) {
        let (members, most, symbol) = match &body {
            Plain::Stripe { members, symbol, .. } => (members.len(), MEMBERS_MAX, symbol.len()),
            Plain::Window { members, symbol } => {
                assert!(members.windows(2).all(|pair| pair[0] < pair[1]), "each once, ascending");
                (members.len(), SPAN_MAX, symbol.len())
            }
            Plain::Witness { members } => (members.len(), MEMBERS_MAX, 0),
        };
        assert!((1..=most).contains(&members) && symbol < bytes.len());
        let combined = !matches!(body, Plain::Witness { .. });
        assert!((0..members).all(|at| (body.coefficient(7, at) != 0) == combined), "a member that is not combined");
        // The short form of a member does not say its epoch, which is the share's: what is of another is not written.
        if body.headers().all(|header| header.epoch == EPOCH) {
            let mut again = Vec::new();
            body.encode(&mut again);
            assert_eq!(Plain::decode(EPOCH, &again.into()).as_ref(), Ok(&body));
        }
    }
    match heap::within(&bytes, 4096, 64, || decode_symbol(&bytes)) {
        Ok(entry) => {
            let symbol = encode_symbol(&entry);
            assert!(bytes.starts_with(&symbol) && bytes[symbol.len()..].iter().all(|byte| *byte == 0));
        }
        Err(error) => assert!(matches!(error.code(), Code::Corrupt | Code::UnknownKind), "{error}"),
    }
}

/// The only error there is.
fn is_too_large<T>(result: Result<T>) -> Option<T> {
    result.inspect_err(|error| assert_eq!(error.code(), Code::TooLarge, "{error}")).ok()
}

/// Equations from peers, in the decoder that a recovery solves them with: parts of the input are bodies, or columns that
/// are known.
pub(crate) fn solving(bytes: &[u8]) {
    const BYTES_MAX: u64 = 16 << 10;
    let mut input = Input::new(bytes);
    let mut decoder = Decoder::<(Lsn, u32)>::new(BYTES_MAX);
    let mut solved = Vec::new();
    while let Some(op) = input.byte() {
        let part = Bytes::copy_from_slice(input.part());
        if op % 4 == 0 {
            is_too_large(decoder.know((Lsn(u64::from(op / 4)), 0), part));
        } else if let Some(body) = plain(&part) {
            let (keys, symbol): (Vec<_>, _) = match &body {
                Plain::Stripe { members, symbol, .. } => {
                    (members.iter().map(|member| (member.header.lsn, member.segment)).collect(), symbol)
                }
                Plain::Window { members, symbol } => (members.iter().map(|lsn| (*lsn, 0)).collect(), symbol),
                Plain::Witness { .. } => continue,
            };
            let terms: Vec<_> =
                keys.iter().enumerate().map(|(at, key)| (*key, body.coefficient(u64::from(op), at))).collect();
            let before = decoder.contradictions();
            if let Some(Inserted::Inconsistent) = is_too_large(decoder.insert(&terms, symbol)) {
                assert!(decoder.contradictions() > before, "it is counted");
            }
        }
        assert!(decoder.bytes() <= BYTES_MAX, "{} bytes", decoder.bytes());
        solved.extend(decoder.take_solved());
    }
    let mut keys: Vec<_> = solved.iter().map(|(key, _)| *key).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), solved.len(), "a column is solved once");
    assert!(decoder.unsolved().all(|key| keys.binary_search(&key).is_err()), "what is solved is solved");
}

/// Bodies under seal: nothing opens but what was sealed, whole, for this holder.
#[cfg(all(feature = "grpc", feature = "seeded-bugs"))]
pub(crate) fn sealed(bytes: &[u8]) {
    use tagalong::log::ClientId;
    use tagalong::net::{SEAL_BYTES, Sealer, ShareKey};
    use tagalong::share::{Mode, Share};

    let mut input = Input::new(bytes);
    let (place, flip, id) = (input.number(2), input.byte().unwrap_or(1).max(1), input.number(4));
    let mode = if flip % 2 == 0 { Mode::Stripe } else { Mode::Window };
    let body = Bytes::copy_from_slice(input.bytes(usize::MAX));
    let share = Share { epoch: EPOCH, id, mode, holder: ClientId(5), hold_until: Lsn(9), body };
    let opener = Sealer::new(ShareKey::new([7; 32])).expect("random bits");
    let is_refused = |share: &Share| {
        let opened = heap::within(&share.body, 16384, 8, || opener.open(share));
        assert_eq!(opened.expect_err("nobody sealed this").code(), Code::Corrupt);
    };
    // What somebody made up.
    is_refused(&share);
    let mut sealer = Sealer::new(ShareKey::new([7; 32])).expect("random bits");
    let sealed = sealer.seal(share.clone()).expect("the first one");
    assert_eq!(sealed.body.len(), share.body.len() + SEAL_BYTES);
    assert_eq!(opener.open(&sealed).as_ref(), Ok(&share.body));
    assert!(sealer.seal(share.clone()).is_err(), "a nonce is used once");
    // What somebody changed: a bit anywhere, the end, the head.
    let mut changed = sealed.body.to_vec();
    let at = usize::try_from(place).unwrap() % changed.len();
    changed[at] ^= flip;
    is_refused(&Share { body: changed.into(), ..sealed.clone() });
    is_refused(&Share { body: sealed.body.slice(..at), ..sealed.clone() });
    is_refused(&Share { id: id ^ u64::from(flip), ..sealed.clone() });
    is_refused(&Share { holder: ClientId(5 ^ u128::from(flip)), ..sealed.clone() });
    is_refused(&Share { hold_until: Lsn(9 ^ u64::from(flip)), ..sealed.clone() });
    is_refused(&Share { epoch: Epoch { number: 1 ^ u64::from(flip), ..EPOCH }, ..sealed });
}
