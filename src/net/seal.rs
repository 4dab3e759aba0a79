//! Shares under seal: what a holder keeps of others it can neither read nor forge.
//!
//! A share's body is encrypted by AES-256-GCM under a key that only the nodes of a group have, and its clear head is
//! authenticated with it. The form, all numbers big-endian:
//!
//! ```text
//! body    salt (16) ‖ ciphertext ‖ tag (16)
//! key     HKDF-SHA256(secret, salt, "tagalong share v1" ‖ epoch)     epoch = generation (4) ‖ number (8) ‖ node (8)
//! nonce   low half of the epoch's number (4) ‖ share id (8)
//! data    version (1) ‖ mode (1) ‖ epoch (20) ‖ share id (8) ‖ holder (16) ‖ hold until (8)
//! ```
//!
//! A nonce must never be used twice under one key. The salt is drawn anew by every [`Sealer`], so no two of them share
//! a key, however often a process restarts in one epoch; and a sealer refuses every id but a higher one, and every
//! epoch below the last.
//!
//! Not here: whether the one who hands a share in is the holder that its head names, and whether the epoch is the one
//! that is rebuilt. A seal says that some node of the group made this share, for that holder.

use std::collections::VecDeque;
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use parking_lot::Mutex;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag};
use ring::hkdf;

use super::random_u128;
use crate::error::{Code, Error, Result};
use crate::log::Epoch;
use crate::share::{Mode, Share, VERSION};

#[cfg(test)]
mod tests;

const SALT_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
/// By how much a sealed body is longer than the plain one.
pub const SEAL_BYTES: usize = SALT_BYTES + TAG_BYTES;

const KEY_BYTES: usize = 32;
const LABEL: &[u8] = b"tagalong share v1";
const EPOCH_BYTES: usize = 20;
const HEAD_BYTES: usize = 1 + 1 + EPOCH_BYTES + 8 + 16 + 8;
/// Derived keys kept for opening: a report has shares of few epochs and salts.
const OPENING_MAX: usize = 8;

type Salt = [u8; SALT_BYTES];

/// The secret under which shares are sealed: 32 bytes that every node of a group has, and nobody else.
#[derive(Clone)]
pub struct ShareKey([u8; KEY_BYTES]);

impl ShareKey {
    /// The key that is these bytes. They should be random: a password is no key.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A new random key.
    ///
    /// # Errors
    /// [`Code::Storage`] if the system gives no random bytes.
    pub fn generate() -> Result<Self> {
        let mut bytes = [0; KEY_BYTES];
        bytes[..16].copy_from_slice(&random_u128()?.to_be_bytes());
        bytes[16..].copy_from_slice(&random_u128()?.to_be_bytes());
        Ok(Self(bytes))
    }

    /// Reads a key file: 64 hex digits, as [`to_hex`](ShareKey::to_hex) or `openssl rand -hex 32` writes them, and at
    /// most a newline after them. On Unix only its owner may have any access to it.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] if there is no such file, others have access to it, or it has something else in it;
    /// [`Code::Storage`] if it cannot be read.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let wrong = |why: String| Error::new(Code::InvalidArgument, format!("key file {}: {why}", path.display()));
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                wrong("there is no such file; `openssl rand -hex 32` makes what belongs into it".to_owned())
            }
            _ => Error::new(Code::Storage, format!("key file {}: {error}", path.display())),
        };
        let file = std::fs::File::open(path).map_err(failed)?;
        let about = file.metadata().map_err(failed)?;
        if about.is_dir() {
            return Err(wrong("it is a folder".to_owned()));
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = about.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                let why = format!("others than its owner have access to it (mode {mode:03o}); chmod 600 it");
                return Err(wrong(why));
            }
        }
        // One byte more than there may be.
        let mut text = Vec::new();
        file.take(2 * KEY_BYTES as u64 + 3).read_to_end(&mut text).map_err(failed)?;
        // What is wrong is never quoted: it may be most of a key.
        from_hex(&text).map(Self).ok_or_else(|| wrong("it must hold 64 hex digits, and nothing else".to_owned()))
    }

    /// The key as 64 hex digits: what belongs into a key file.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What the sealer that drew `salt` seals with in `epoch`.
    fn derive(&self, epoch: Epoch, salt: &Salt) -> LessSafeKey {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&self.0);
        let info = [LABEL, &epoch_bytes(epoch)];
        let expanded = secret.expand(&info, &AES_256_GCM).expect("the length of a key is within what HKDF gives");
        LessSafeKey::new(expanded.into())
    }
}

impl fmt::Debug for ShareKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShareKey(secret)")
    }
}

/// Seals shares, and opens what any sealer with the same key has sealed.
///
/// Not `Clone`: two that go on from one state would use nonces twice.
pub struct Sealer {
    key: ShareKey,
    /// Random: no other sealer, of whatever process, has it.
    salt: Salt,
    /// What was sealed last, and with what; `last` is of this epoch.
    epoch: Epoch,
    last: Option<u64>,
    sealing: LessSafeKey,
    /// Keys that have opened something, the last one used first.
    opening: Mutex<VecDeque<(Epoch, Salt, Arc<LessSafeKey>)>>,
}

impl Sealer {
    /// A sealer with a salt of its own.
    ///
    /// # Errors
    /// [`Code::Storage`] if the system gives no random bytes.
    pub fn new(key: ShareKey) -> Result<Self> {
        Ok(Self::salted(key, random_u128()?.to_be_bytes()))
    }

    fn salted(key: ShareKey, salt: Salt) -> Self {
        let sealing = key.derive(Epoch::ZERO, &salt);
        Self { key, salt, epoch: Epoch::ZERO, last: None, sealing, opening: Mutex::default() }
    }

    /// Puts the plain body under seal; it grows by [`SEAL_BYTES`]. Shares come in the order of their ids, each once.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] if the id is not above the last one of its epoch, or the epoch is below the last one:
    /// nothing is sealed then. [`Code::TooLarge`] beyond 64 GiB.
    pub fn seal(&mut self, share: Share) -> Result<Share> {
        let refuse =
            |why| Err(Error::new(Code::InvalidArgument, format!("{} must not be sealed: {why}", name(&share))));
        if share.epoch < self.epoch {
            return refuse(format!("epoch {} has begun", self.epoch));
        }
        if share.epoch > self.epoch {
            self.sealing = self.key.derive(share.epoch, &self.salt);
            (self.epoch, self.last) = (share.epoch, None);
        }
        if let Some(last) = self.last.filter(|last| share.id <= *last) {
            return refuse(format!("share {last} was, and its nonce would not be new"));
        }
        self.last = Some(share.id);
        let mut body = Vec::with_capacity(share.body.len() + SEAL_BYTES);
        body.extend_from_slice(&self.salt);
        body.extend_from_slice(&share.body);
        let head = Aad::from(head(VERSION, &share));
        let tag = self.sealing.seal_in_place_separate_tag(nonce(&share), head, &mut body[SALT_BYTES..]);
        let tag = tag.map_err(|_| Error::new(Code::TooLarge, format!("{} is too large to be sealed", name(&share))))?;
        body.extend_from_slice(tag.as_ref());
        Ok(Share { body: body.into(), ..share })
    }

    /// The plain body.
    ///
    /// # Errors
    /// [`Code::Corrupt`] if head or body are not what a node of the group sealed: forged, damaged, of another version,
    /// or under another key.
    pub fn open(&self, share: &Share) -> Result<Bytes> {
        let broken = || {
            let why = format!("the seal of {} does not hold: forged, damaged, or under another key", name(share));
            Error::new(Code::Corrupt, why)
        };
        let (salt, sealed) = share.body.split_first_chunk::<SALT_BYTES>().ok_or_else(broken)?;
        let (body, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or_else(broken)?;
        let known = self.known(share.epoch, salt);
        let key = known.clone().unwrap_or_else(|| Arc::new(self.key.derive(share.epoch, salt)));
        let mut body = body.to_vec();
        let head = Aad::from(head(VERSION, share));
        key.open_in_place_separate_tag(nonce(share), head, Tag::from(*tag), &mut body, 0..).map_err(|_| broken())?;
        if known.is_none() {
            // Only now: what does not open must not push out what does.
            self.remember(share.epoch, salt, key);
        }
        Ok(body.into())
    }

    fn known(&self, epoch: Epoch, salt: &Salt) -> Option<Arc<LessSafeKey>> {
        let mut opening = self.opening.lock();
        let at = opening.iter().position(|(of, by, _)| (*of, by) == (epoch, salt))?;
        let found = opening.remove(at)?;
        let key = Arc::clone(&found.2);
        opening.push_front(found);
        Some(key)
    }

    fn remember(&self, epoch: Epoch, salt: &Salt, key: Arc<LessSafeKey>) {
        let mut opening = self.opening.lock();
        opening.push_front((epoch, *salt, key));
        opening.truncate(OPENING_MAX);
    }
}

/// Of a share, for people.
fn name(share: &Share) -> String {
    format!("share {} of epoch {} for holder {}", share.id, share.epoch, share.holder)
}

fn epoch_bytes(Epoch { generation, number, node }: Epoch) -> [u8; EPOCH_BYTES] {
    let mut bytes = [0; EPOCH_BYTES];
    let mut put = &mut bytes[..];
    put.put_u32(generation);
    put.put_u64(number);
    put.put_u64(node.0);
    bytes
}

/// The clear head in its one form.
fn head(version: u8, share: &Share) -> [u8; HEAD_BYTES] {
    // By name, so that nobody adds a field that the seal does not cover.
    let Share { epoch, id, mode, holder, hold_until, body: _ } = share;
    let mut head = [0; HEAD_BYTES];
    let mut put = &mut head[..];
    put.put_u8(version);
    put.put_u8(match mode {
        Mode::Stripe => 1,
        Mode::Window => 2,
    });
    put.put_slice(&epoch_bytes(*epoch));
    put.put_u64(*id);
    put.put_u128(holder.0);
    put.put_u64(hold_until.0);
    debug_assert!(put.is_empty(), "the head has a fixed length");
    head
}

fn nonce(share: &Share) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&share.epoch.number.to_be_bytes()[4..]);
    nonce[4..].copy_from_slice(&share.id.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// What [`ShareKey::to_hex`] wrote, in either case, with or without a newline.
fn from_hex(text: &[u8]) -> Option<[u8; KEY_BYTES]> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    if text.len() != 2 * KEY_BYTES {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut bytes = [0; KEY_BYTES];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(bytes)
}
