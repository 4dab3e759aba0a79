//! What the seal promises: the nodes of a group read back what one of them sealed, and nothing else whatever.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::log::{ClientId, Lsn, NodeId};

const EPOCH: Epoch = Epoch { generation: 3, number: 0x1122_3344_5566_7788, node: NodeId(0x99aa_bbcc_ddee_ff01) };

fn key() -> ShareKey {
    ShareKey::new(std::array::from_fn(|at| u8::try_from(at).unwrap()))
}

fn sealer() -> Sealer {
    Sealer::new(key()).unwrap()
}

fn share(id: u64, body: &'static [u8]) -> Share {
    Share {
        epoch: EPOCH,
        id,
        mode: Mode::Stripe,
        holder: ClientId(0x1011_1213_1415_1617_1819_1a1b_1c1d_1e1f),
        hold_until: Lsn(0x2122_2324_2526_2728),
        body: Bytes::from_static(body),
    }
}

fn refused(sealer: &Sealer, share: &Share) {
    let error = sealer.open(share).unwrap_err();
    assert_eq!(error.code(), Code::Corrupt);
    for named in [share.id.to_string(), share.epoch.to_string(), share.holder.to_string()] {
        assert!(error.message().contains(&named), "{error} does not name {named}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Computed by another implementation of HKDF and AES-GCM from what the top of the file says. Shares outlive the
/// version of the node that made them: whoever has to change this changes the version of a share.
#[test]
fn the_form_is_what_it_was() {
    let mut share = share(0x0203_0405_0607_0809, b"what others wrote");
    let seal = |share: &Share| {
        let mut sealer = Sealer::salted(key(), std::array::from_fn(|at| 0xa0 + u8::try_from(at).unwrap()));
        hex(&sealer.seal(share.clone()).unwrap().body)
    };
    let salt_and_text = "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf1069eee77b7f91fd68441e5e021252f3c6";
    assert_eq!(seal(&share), format!("{salt_and_text}e225d8b9326a1e3ed4b5c4b35de0ba70"));
    share.mode = Mode::Window;
    assert_eq!(seal(&share), format!("{salt_and_text}f8eb9e1c8e6485bcd1115129ce4a9bfa"));
}

#[test]
fn every_bit_counts() {
    let mut sealer = sealer();
    let plain = share(7, b"forty bytes or so of what others wrote");
    let sealed = sealer.seal(plain.clone()).unwrap();
    assert_eq!(sealer.open(&sealed).unwrap(), plain.body);
    let mut others = vec![Share { mode: Mode::Window, ..sealed.clone() }];
    let with = |change: &dyn Fn(&mut Share)| {
        let mut other = sealed.clone();
        change(&mut other);
        other
    };
    for bit in 0..128 {
        others.push(with(&|share| share.holder.0 ^= 1 << bit));
    }
    for bit in 0..64 {
        others.push(with(&|share| share.epoch.number ^= 1 << bit));
        others.push(with(&|share| share.epoch.node.0 ^= 1 << bit));
        others.push(with(&|share| share.id ^= 1 << bit));
        others.push(with(&|share| share.hold_until.0 ^= 1 << bit));
    }
    for bit in 0..32 {
        others.push(with(&|share| share.epoch.generation ^= 1 << bit));
    }
    // Salt, ciphertext and tag.
    for bit in 0..sealed.body.len() * 8 {
        let mut body = sealed.body.to_vec();
        body[bit / 8] ^= 1 << (bit % 8);
        others.push(Share { body: body.into(), ..sealed.clone() });
    }
    for other in &others {
        assert_ne!(*other, sealed);
        refused(&sealer, other);
    }
    // And every end that is cut off or put on.
    for length in 0..sealed.body.len() {
        refused(&sealer, &Share { body: sealed.body.slice(..length), ..sealed.clone() });
        refused(&sealer, &Share { body: sealed.body.slice(sealed.body.len() - length..), ..sealed.clone() });
    }
    refused(&sealer, &Share { body: [&sealed.body[..], &[0]].concat().into(), ..sealed.clone() });
}

#[test]
fn the_version_counts() {
    let sealer = sealer();
    for version in [VERSION - 1, VERSION + 1] {
        let mut share = share(1, b"");
        let key = sealer.key.derive(share.epoch, &sealer.salt);
        let tag = key.seal_in_place_separate_tag(nonce(&share), Aad::from(head(version, &share)), &mut []).unwrap();
        share.body = [&sealer.salt[..], tag.as_ref()].concat().into();
        refused(&sealer, &share);
    }
}

#[test]
fn another_key_opens_nothing() {
    let sealed = sealer().seal(share(1, b"body")).unwrap();
    for bit in 0..KEY_BYTES * 8 {
        let mut bytes = key().0;
        bytes[bit / 8] ^= 1 << (bit % 8);
        refused(&Sealer::new(ShareKey::new(bytes)).unwrap(), &sealed);
    }
    refused(&Sealer::new(ShareKey::generate().unwrap()).unwrap(), &sealed);
}

/// A process that restarts in the same epoch counts its shares from the beginning again.
#[test]
fn two_processes_share_a_key_but_no_nonce() {
    let (mut one, mut two) = (sealer(), sealer());
    for id in 0..50 {
        let plain = share(id, b"the same body");
        let (of_one, of_two) = (one.seal(plain.clone()).unwrap(), two.seal(plain.clone()).unwrap());
        let text = |sealed: &Share| sealed.body[SALT_BYTES..][..plain.body.len()].to_vec();
        assert_ne!(text(&of_one), text(&of_two));
        assert_ne!(text(&of_one), plain.body);
        for sealed in [of_one, of_two] {
            assert_eq!(sealed.body.len(), plain.body.len() + SEAL_BYTES);
            assert_eq!(one.open(&sealed).unwrap(), plain.body);
            assert_eq!(two.open(&sealed).unwrap(), plain.body);
        }
    }
}

#[test]
fn no_id_is_sealed_twice() {
    let mut sealer = sealer();
    let refuse = |sealer: &mut Sealer, share: Share| {
        let error = sealer.seal(share).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    };
    sealer.seal(share(0, b"first")).unwrap();
    sealer.seal(share(5, b"gaps are fine")).unwrap();
    for id in 0..=5 {
        refuse(&mut sealer, share(id, b"another"));
    }
    // Nor in another mode, or for another holder: the nonce is the same.
    refuse(&mut sealer, Share { mode: Mode::Window, ..share(5, b"another") });
    refuse(&mut sealer, Share { holder: ClientId(1), ..share(5, b"another") });
    sealer.seal(share(6, b"the next")).unwrap();
    // A later epoch has its own key and counts anew; there is no way back, by which the ids would begin again.
    for later in [
        Epoch { node: NodeId(EPOCH.node.0 + 1), ..EPOCH },
        Epoch { number: EPOCH.number + (1 << 32), ..EPOCH },
        Epoch { generation: EPOCH.generation + 1, ..EPOCH },
    ] {
        let of = |epoch, id| Share { epoch, ..share(id, b"of a later epoch") };
        let low = sealer.seal(of(later, 0)).unwrap();
        refuse(&mut sealer, of(EPOCH, 100));
        let high = sealer.seal(of(later, u64::MAX)).unwrap();
        assert_eq!(sealer.open(&low).unwrap(), sealer.open(&high).unwrap());
        refuse(&mut sealer, of(later, u64::MAX));
    }
}

#[test]
fn garbage_of_every_length_is_refused() {
    let sealer = sealer();
    let mut random = 1u32;
    for length in 0..200 {
        let body: Vec<u8> = std::iter::repeat_with(|| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            random.to_be_bytes()[0]
        })
        .take(length)
        .collect();
        refused(&sealer, &Share { body: body.into(), ..share(1, b"") });
        refused(&sealer, &Share { body: vec![0; length].into(), ..share(1, b"") });
    }
}

/// Many restarts, and somebody who hands in nonsense: what is kept of them is bounded, and nonsense takes no place.
#[test]
fn few_keys_are_kept_for_opening() {
    let opener = sealer();
    let sealed: Vec<Share> = (0..3 * OPENING_MAX).map(|_| sealer().seal(share(1, b"body")).unwrap()).collect();
    for _ in 0..2 {
        for share in &sealed {
            assert_eq!(opener.open(share).unwrap(), &b"body"[..]);
            assert_eq!(opener.open(share).unwrap(), &b"body"[..]);
            assert!(opener.opening.lock().len() <= OPENING_MAX);
        }
    }
    let before: Vec<Salt> = opener.opening.lock().iter().map(|(_, salt, _)| *salt).collect();
    assert_eq!(before.len(), OPENING_MAX);
    for share in &sealed {
        let mut body = share.body.to_vec();
        body[0] ^= 1;
        refused(&opener, &Share { body: body.into(), ..share.clone() });
    }
    // The one used last stands first, and no salt has two places.
    assert_eq!(before[0], sealed.last().unwrap().body[..SALT_BYTES]);
    assert_eq!(opener.opening.lock().iter().map(|(_, salt, _)| *salt).collect::<Vec<_>>(), before);
    assert_eq!(before.iter().collect::<std::collections::BTreeSet<_>>().len(), OPENING_MAX);
}

fn epochs() -> impl Strategy<Value = Epoch> {
    (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(|(generation, number, node)| Epoch {
        generation,
        number,
        node: NodeId(node),
    })
}

fn shares() -> impl Strategy<Value = Share> {
    let mode = prop_oneof![Just(Mode::Stripe), Just(Mode::Window)];
    (epochs(), any::<u64>(), mode, any::<u128>(), any::<u64>(), vec(any::<u8>(), 0..300)).prop_map(
        |(epoch, id, mode, holder, hold_until, body)| Share {
            epoch,
            id,
            mode,
            holder: ClientId(holder),
            hold_until: Lsn(hold_until),
            body: body.into(),
        },
    )
}

proptest! {
    #[test]
    fn what_was_sealed_opens(plain in shares()) {
        let sealed = sealer().seal(plain.clone()).unwrap();
        prop_assert_eq!(sealed.body.len(), plain.body.len() + SEAL_BYTES);
        prop_assert_eq!(sealer().open(&sealed), Ok(plain.body.clone()));
        prop_assert_eq!(Share { body: plain.body.clone(), ..sealed }, plain);
    }

    #[test]
    fn garbage_is_refused(share in shares()) {
        refused(&sealer(), &share);
    }

    #[test]
    fn heads_that_differ_are_told_apart(one in shares(), two in shares()) {
        // Each takes one part of the other, so that most of them differ little.
        let mixed = [
            Share { epoch: two.epoch, ..one.clone() },
            Share { id: two.id, ..one.clone() },
            Share { holder: two.holder, ..one.clone() },
            Share { hold_until: two.hold_until, ..one.clone() },
            Share { mode: two.mode, ..one.clone() },
        ];
        for other in mixed {
            let same = (other.epoch, other.id, other.mode, other.holder, other.hold_until)
                == (one.epoch, one.id, one.mode, one.holder, one.hold_until);
            prop_assert_eq!(head(VERSION, &other) == head(VERSION, &one), same);
        }
    }
}

#[test]
fn a_new_key_is_random_all_over() {
    let (one, two) = (ShareKey::generate().unwrap().0, ShareKey::generate().unwrap().0);
    for quarter in 0..4 {
        let of = |key: [u8; KEY_BYTES]| <[u8; 8]>::try_from(&key[quarter * 8..][..8]).unwrap();
        assert_ne!(of(one), of(two));
        assert_ne!(of(one), [0; 8]);
    }
    assert_ne!(one[..16], one[16..]);
}

#[test]
fn a_key_is_not_printed() {
    assert_eq!(format!("{:?}", key()), "ShareKey(secret)");
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn file(&self, text: &[u8]) -> PathBuf {
        let path = self.0.path().join("share.key");
        std::fs::write(&path, text).unwrap();
        self.mode(0o600);
        path
    }

    fn mode(&self, mode: u32) {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(self.0.path().join("share.key"), PermissionsExt::from_mode(mode)).unwrap();
        }
        #[cfg(not(unix))]
        let _ = mode;
    }
}

#[test]
fn a_key_file_reads_back() {
    let folder = Folder(tempfile::tempdir().unwrap());
    let key = ShareKey::generate().unwrap();
    for text in [key.to_hex(), key.to_hex() + "\n", key.to_hex() + "\r\n", key.to_hex().to_uppercase()] {
        assert_eq!(ShareKey::from_file(folder.file(text.as_bytes())).unwrap().to_hex(), key.to_hex());
    }
}

#[test]
fn a_key_file_that_is_none_is_refused() {
    let folder = Folder(tempfile::tempdir().unwrap());
    let refused = |path: PathBuf, code: Code, says: &str| {
        let error = ShareKey::from_file(&path).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(says), "{error}");
        assert!(error.message().contains(path.to_str().unwrap()), "{error}");
        error
    };
    refused(folder.0.path().join("none"), Code::InvalidArgument, "openssl rand -hex 32");
    refused(folder.0.path().to_owned(), Code::InvalidArgument, "folder");
    let good = key().to_hex();
    let long = good.repeat(1000);
    let texts = [
        String::new(),
        "\n".to_owned(),
        good[1..].to_owned(),
        good.clone() + "0",
        good.clone() + "\n\n",
        good.clone() + "\n0",
        " ".to_owned() + &good,
        "0x".to_owned() + &good[2..],
        "+f".to_owned() + &good[2..],
        good.replace('f', "g"),
        "é".repeat(32),
        long,
    ];
    for text in texts {
        let error = refused(folder.file(text.as_bytes()), Code::InvalidArgument, "64 hex digits");
        assert!(text.len() < 32 || !error.message().contains(&text[..32]), "{error} tells the key");
    }
    refused(folder.file(&[0xff; 64]), Code::InvalidArgument, "64 hex digits");
}

#[cfg(unix)]
#[test]
fn a_key_file_that_others_can_reach_is_refused() {
    let folder = Folder(tempfile::tempdir().unwrap());
    let path = folder.file(key().to_hex().as_bytes());
    for mode in [0o604, 0o640, 0o644, 0o660, 0o666, 0o601, 0o620] {
        folder.mode(mode);
        let error = ShareKey::from_file(&path).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{mode:o}: {error}");
        assert!(error.message().contains("chmod 600"), "{error}");
        assert!(error.message().contains(&format!("{mode:o}")), "{error}");
    }
    for mode in [0o600, 0o400] {
        folder.mode(mode);
        ShareKey::from_file(&path).unwrap();
    }
}
