//! The codec of all streams: prost's, with small buffers, each of which grows at once to what a message takes.
//!
//! Each direction of each call takes its first buffer at once, and most streams are idle: with a thousand of them, tonic's
//! 8 KiB a direction are a third of all that they take. Whoever is busy grows its buffers to what it needs.

use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, DecodeBuf, EncodeBuf};

/// A buffer's first size, and how much is gathered before it is passed on, which is tonic's own.
const FIRST_BYTES: usize = 1 << 10;
const YIELD_BYTES: usize = 32 << 10;
/// From this size on a message may be kept where it was received.
const LARGE: usize = super::convert::LARGE;

pub(super) struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = Encoder<T>;
    type Decoder = Decoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        Encoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        Decoder(PhantomData)
    }
}

/// Prost's own leaves it to the buffer to grow, which doubles it, and copies it, until a message fits.
pub(super) struct Encoder<T>(PhantomData<T>);

impl<T: Message> tonic::codec::Encoder for Encoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, message: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(message.encoded_len());
        message.encode_raw(buffer);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(FIRST_BYTES, YIELD_BYTES)
    }
}

/// A message that says little for its size, because of fields that nobody here knows, or that come twice, is read again from
/// what it says: who keeps a part of it would keep all of its buffer.
pub(super) struct Decoder<U>(PhantomData<U>);

impl<U: Message + Default> tonic::codec::Decoder for Decoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        decode(buffer).map(Some).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(FIRST_BYTES, YIELD_BYTES)
    }
}

fn decode<U: Message + Default>(buffer: impl Buf) -> Result<U, prost::DecodeError> {
    let length = buffer.remaining();
    let message = U::decode(buffer)?;
    if length < LARGE || message.encoded_len() >= length / 4 * 3 {
        return Ok(message);
    }
    U::decode(Bytes::from(message.encode_to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of what is thrown away nothing is kept alive.
    #[test]
    fn a_message_that_says_little_lets_go_of_its_buffer() {
        let (payload, junk) = (Bytes::from(vec![7; LARGE]), vec![0x5a; 4 * LARGE]);
        let item = crate::net::pb::Payload { request: 1, payload: payload.clone() };
        let message = crate::net::pb::Payloads { items: vec![item], ..Default::default() };
        let mut wire = message.encode_to_vec();
        // A field of a number that no version has had yet.
        prost::encoding::bytes::encode(500, &junk, &mut wire);
        let buffer = Bytes::from(wire);
        let read: crate::net::pb::Payloads = decode(buffer.clone()).expect("it can be read");
        assert_eq!(read.items[0].payload, payload);
        assert!(buffer.is_unique(), "the payload has memory of its own");
        let buffer = Bytes::from(message.encode_to_vec());
        let read: crate::net::pb::Payloads = decode(buffer.clone()).expect("it can be read");
        assert_eq!(read.items[0].payload, payload);
        assert!(!buffer.is_unique(), "the payload is where it was received");
    }
}
