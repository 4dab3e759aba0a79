//! The codec of all streams: prost's, with small buffers.
//!
//! Each direction of each call takes its first buffer at once, and most streams are idle: with a thousand of them, tonic's
//! 8 KiB a direction are a third of all that they take. Whoever is busy grows its buffers to what it needs.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::BufferSettings;
use tonic_prost::{ProstDecoder, ProstEncoder};

/// A buffer's first size, and how much is gathered before it is passed on, which is tonic's own.
const FIRST_BYTES: usize = 1 << 10;
const YIELD_BYTES: usize = 32 << 10;

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
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::new(FIRST_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::new(FIRST_BYTES, YIELD_BYTES))
    }
}
