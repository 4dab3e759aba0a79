//! Records that were read and checked, but not taken apart.

use bytes::Bytes;

use crate::codec;
use crate::error::{Code, Error, Result};
use crate::log::{Lsn, Record};

/// Consecutive records as a store keeps them, so that reading and [decoding](Encoded::decode) can go on on different threads.
/// A store whose form is another than [`codec`]'s makes them of records.
#[derive(Clone, Debug)]
pub struct Encoded {
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    Records(Vec<Record>),
    /// The record at `first` ends in `bytes` where the first of `ends` says, and so on.
    Bytes {
        first: Lsn,
        bytes: Bytes,
        ends: Vec<usize>,
    },
}

impl Encoded {
    /// The records from `first` on, one behind the other in the form of [`codec::encode_record`]; `ends` says where in `bytes`
    /// each of them ends.
    pub fn new(first: Lsn, bytes: impl Into<Bytes>, ends: Vec<usize>) -> Self {
        Self { form: Form::Bytes { first, bytes: bytes.into(), ends } }
    }

    /// The last LSN in here; `None` if there is no record.
    pub fn last(&self) -> Option<Lsn> {
        match &self.form {
            Form::Records(records) => records.last().map(Record::lsn),
            Form::Bytes { first, ends, .. } => {
                (ends.len() as u64).checked_sub(1).map(|more| Lsn(first.0.saturating_add(more)))
            }
        }
    }

    /// The records. Their payloads are parts of one buffer, and keep it.
    ///
    /// # Errors
    /// [`Code::UnknownKind`] or [`Code::Corrupt`] if they are not what they should be. The store's own
    /// [`read`](super::LogStore::read) finds the same, and names the place.
    pub fn decode(self) -> Result<Vec<Record>> {
        let (mut lsn, bytes, ends) = match self.form {
            Form::Records(records) => return Ok(records),
            Form::Bytes { first, bytes, ends } => (first, bytes, ends),
        };
        let mut records = Vec::with_capacity(ends.len());
        let mut start = 0;
        for end in ends {
            let record = codec::decode_record_of(&bytes, start..end)
                .map_err(|error| Error::new(error.code(), format!("record {lsn}: {}", error.message())))?;
            if record.lsn() != lsn {
                return Err(Error::new(Code::Corrupt, format!("record {lsn} says that it is record {}", record.lsn())));
            }
            records.push(record);
            (start, lsn) = (end, lsn.next());
        }
        Ok(records)
    }
}

impl From<Vec<Record>> for Encoded {
    fn from(records: Vec<Record>) -> Self {
        Self { form: Form::Records(records) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Body, Digest, Entry, Epoch, Header, Request, Time};

    fn records(count: u64) -> Vec<Record> {
        let record = |lsn| {
            let payload = Bytes::from(vec![7; usize::try_from(lsn).unwrap_or(0) % 5]);
            let (epoch, body, time) = (Epoch { number: 1, ..Epoch::ZERO }, Body::Command, Time(lsn));
            let (length, digest) = (u32::try_from(payload.len()).unwrap_or(0), Digest::crc32(&payload));
            let header =
                Header { epoch, lsn: Lsn(lsn), body, origin: None, time, answered: Request(0), length, digest };
            Record { entry: Entry { header, payload }, reply: Digest::default() }
        };
        (1..=count).map(record).collect()
    }

    fn encoded(records: &[Record], first: u64) -> (Vec<u8>, Vec<usize>, Encoded) {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for record in records {
            codec::encode_record(record, &mut bytes);
            ends.push(bytes.len());
        }
        (bytes.clone(), ends.clone(), Encoded::new(Lsn(first), bytes, ends))
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for count in [0, 1, 20] {
            let records = records(count);
            for form in [encoded(&records, 1).2, Encoded::from(records.clone())] {
                assert_eq!(form.last(), records.last().map(Record::lsn));
                assert_eq!(form.decode().expect("what was encoded"), records);
            }
        }
    }

    #[test]
    fn what_is_wrong_is_an_error() {
        let records = records(6);
        assert!(encoded(&records, 2).2.decode().is_err(), "LSNs that are not their own");
        let (bytes, ends, _) = encoded(&records, 1);
        for end in [0, 1, bytes.len() + 1, usize::MAX] {
            let mut ends = ends.clone();
            ends[3] = end;
            assert!(Encoded::new(Lsn(1), bytes.clone(), ends).decode().is_err(), "a record that ends at {end}");
        }
        for length in 0..bytes.len() {
            assert!(Encoded::new(Lsn(1), bytes[..length].to_vec(), ends.clone()).decode().is_err(), "{length} bytes");
        }
    }
}
