//! A peer that lies, by hand: HTTP/2 frames, gRPC frames and protobuf fields as bytes, so that any of them can be wrong.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The same numbers in every run (splitmix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).unwrap()
    }

    pub(crate) fn noise(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next().to_le_bytes()[0]).collect()
    }

    /// The message with a few bytes replaced, left out or put in.
    pub(crate) fn mutated(&mut self, message: &[u8]) -> Vec<u8> {
        let mut bytes = message.to_vec();
        for _ in 0..1 + self.below(4) {
            let (at, byte) = (self.below(bytes.len()), self.next().to_le_bytes()[0]);
            match self.below(4) {
                0 if !bytes.is_empty() => drop(bytes.remove(at)),
                1 => bytes.insert(at, byte),
                _ if !bytes.is_empty() => bytes[at] = byte,
                _ => {}
            }
        }
        bytes
    }
}

/// A protobuf message.
#[derive(Clone, Default)]
pub(crate) struct Proto(pub(crate) Vec<u8>);

impl Proto {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }

    pub(crate) fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    pub(crate) fn fixed(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    pub(crate) fn part(self, field: u64, part: &Proto) -> Self {
        self.bytes(field, &part.0)
    }
}

/// A message with its length before it, as gRPC frames it.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    claimed(0, u32::try_from(message.len()).unwrap(), message)
}

/// A message that claims to be compressed, or of another length.
pub(crate) fn claimed(compressed: u8, length: u32, message: &[u8]) -> Vec<u8> {
    [&[compressed][..], &length.to_be_bytes(), message].concat()
}

/// A frame of HTTP/2.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of a call; one whose path is longer than 100 bytes does not fit.
fn head(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend(path.as_bytes());
    block.extend(b"\x01\x04liar\x0f\x10\x10application/grpc\x00\x02te\x08trailers");
    block
}

/// A connection.
pub(crate) struct Liar {
    socket: TcpStream,
    next: u32,
}

impl Liar {
    /// Says nothing yet.
    pub(crate) fn dial(endpoint: &str) -> Self {
        let socket = TcpStream::connect(endpoint.strip_prefix("http://").unwrap()).unwrap();
        socket.set_nodelay(true).unwrap();
        // A node that does not read is as good as one that hung up.
        socket.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        Self { socket, next: 1 }
    }

    /// As a client of HTTP/2 begins.
    pub(crate) fn begin(endpoint: &str) -> Self {
        let mut liar = Self::dial(endpoint);
        liar.send(&[PREFACE, &frame(4, 0, 0, &[])].concat());
        liar
    }

    /// The node may hang up in the middle of it.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes);
    }

    /// A call with this body, in frames of HTTP/2, which may be left unfinished.
    pub(crate) fn call(&mut self, path: &str, body: &[u8], finished: bool) {
        let stream = self.next;
        self.next += 2;
        let mut bytes = frame(1, 4, stream, &head(path));
        let chunks = body.chunks(16_384).count();
        for (chunk, n) in body.chunks(16_384).zip(1..) {
            bytes.extend(frame(0, u8::from(finished && n == chunks), stream, chunk));
        }
        if finished && chunks == 0 {
            bytes.extend(frame(0, 1, stream, &[]));
        }
        self.send(&bytes);
    }

    /// Waits for the answer to a ping, or for the end.
    pub(crate) fn is_done_with(&mut self) {
        self.send(&frame(6, 0, 0, b"are you?"));
        self.socket.set_read_timeout(Some(crate::wait::LIMIT)).unwrap();
        let pong = frame(6, 1, 0, b"are you?");
        let (mut heard, mut buffer) = (Vec::<u8>::new(), [0; 4096]);
        while !heard.windows(pong.len()).any(|window| window == pong) {
            match self.socket.read(&mut buffer) {
                Ok(length) if length > 0 => heard.extend(&buffer[..length]),
                Ok(_) => return,
                Err(error) => {
                    let waits = [std::io::ErrorKind::WouldBlock, std::io::ErrorKind::TimedOut];
                    assert!(!waits.contains(&error.kind()), "the node says nothing more: {error}");
                    return;
                }
            }
        }
    }
}
