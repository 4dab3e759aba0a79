//! Reads the state that survived, as any client would, for the checker.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tagalong::{ReadOptions, TaggedClient};

use crate::Result;
use crate::checker::{Survivor, Value};
use crate::ledger::{Question, decode_history, decode_keys};
use crate::source::{Comparison, Source};

/// Stamps or keys in one answer.
const PAGE: u32 = 10_000;
/// Bytes of a value in one answer.
const PART_BYTES: u32 = 256 << 10;
/// One answer may take this long.
const ANSWER: Duration = Duration::from_secs(30);

/// What survived, and how it compares with the files.
pub(crate) struct Audit<'a> {
    pub(crate) survivor: Survivor,
    pub(crate) comparison: Comparison<'a>,
}

/// Audits the service at `endpoint`.
pub(crate) async fn audit<'a>(endpoint: &str, source: &'a Source) -> Result<Audit<'a>> {
    let client = TaggedClient::builder("auditor").endpoints([endpoint]).connect().await?;
    let mut survivor = Survivor::default();
    loop {
        let from = survivor.history.len() as u64;
        let page = ask(&client, Question::History { from, max: PAGE }).await?;
        let page = decode_history(&page).ok_or("a page of the history makes no sense")?;
        if page.is_empty() {
            break;
        }
        survivor.history.extend(page);
    }
    let mut comparison = Comparison::new(source);
    let mut after = String::new();
    loop {
        let page = ask(&client, Question::Keys { after, max: PAGE }).await?;
        let page = decode_keys(&page).ok_or("a page of keys makes no sense")?;
        let Some((last, ..)) = page.last() else {
            break;
        };
        after = last.clone();
        read_values(&client, page, &mut survivor.values, &mut comparison).await?;
    }
    client.close().await?;
    Ok(Audit { survivor, comparison })
}

async fn read_values(
    client: &TaggedClient,
    keys: Vec<(String, u64, u64)>,
    values: &mut BTreeMap<String, Value>,
    comparison: &mut Comparison<'_>,
) -> Result<()> {
    for (key, version, length) in keys {
        let mut bytes = Vec::new();
        loop {
            let (offset, key) = (bytes.len() as u64, key.clone());
            let part = ask(client, Question::Part { key, offset, max: PART_BYTES }).await?;
            bytes.extend_from_slice(&part);
            if part.is_empty() || bytes.len() as u64 >= length {
                break;
            }
        }
        comparison.take(&key, &bytes);
        let (length, crc) = (bytes.len() as u64, crc32fast::hash(&bytes));
        // Of what was put, the checker knows the sum only; a large folder need not be in memory at once.
        let is_put = key.starts_with("file/") || key.starts_with("blob/");
        let bytes = (!is_put).then_some(bytes);
        values.insert(key, Value { version, length, crc, bytes });
    }
    Ok(())
}

async fn ask(client: &TaggedClient, question: Question) -> Result<Bytes> {
    let options = ReadOptions::default().deadline(ANSWER);
    Ok(client.read_opts(question.encode(), options).await?)
}
