//! The real input: every file below a folder, in chunks, and the comparison with what came back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

/// Bytes of a file in one command.
pub(crate) const CHUNK_BYTES: u64 = 16 << 10;
/// Folders that are made, not written.
const SKIPPED: [&str; 2] = ["target", ".git"];

/// One file, by its path below the root and its length when the drill began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceFile {
    pub(crate) path: String,
    pub(crate) length: u64,
    /// When it was last changed, in nanoseconds since the Unix epoch: a file edited while the drill runs is no loss.
    pub(crate) modified: u64,
}

/// The files of a drill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) root: PathBuf,
    pub(crate) files: Vec<SourceFile>,
    /// What is there and is not stored: no plain file, not readable, or not named in UTF-8.
    pub(crate) skipped: usize,
}

/// A chunk's place: which file, and the how-manieth of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Chunk {
    pub(crate) file: usize,
    pub(crate) number: u64,
}

impl Chunk {
    /// The key it is stored under.
    pub(crate) fn key(self) -> String {
        format!("file/{:06}/{:06}", self.file, self.number)
    }

    /// The chunk that is stored under this key, if it is a chunk's.
    pub(crate) fn parse(key: &str) -> Option<Chunk> {
        let (file, number) = key.strip_prefix("file/")?.split_once('/')?;
        Some(Chunk { file: file.parse().ok()?, number: number.parse().ok()? })
    }
}

impl SourceFile {
    /// How many chunks it has; an empty file has one, which is empty.
    pub(crate) fn chunks(&self) -> u64 {
        self.length.div_ceil(CHUNK_BYTES).max(1)
    }
}

impl Source {
    /// Walks the folder. Links are not followed.
    pub(crate) fn walk(root: &Path) -> io::Result<Source> {
        let mut source = Source { root: root.to_path_buf(), files: Vec::new(), skipped: 0 };
        let mut folders = vec![root.to_path_buf()];
        while let Some(folder) = folders.pop() {
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if folder == root => return Err(error),
                Err(_) => {
                    source.skipped += 1;
                    continue;
                }
            };
            for entry in entries {
                let entry = entry?;
                let kind = entry.file_type()?;
                if kind.is_dir() && !SKIPPED.iter().any(|name| entry.file_name() == *name) {
                    folders.push(entry.path());
                } else if kind.is_file() {
                    source.add(&entry.path());
                } else if !kind.is_dir() {
                    source.skipped += 1;
                }
            }
        }
        source.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(source)
    }

    fn add(&mut self, path: &Path) {
        let name = path.strip_prefix(&self.root).ok().and_then(Path::to_str);
        match (name, look(path)) {
            (Some(name), Ok((length, modified))) => {
                self.files.push(SourceFile { path: name.into(), length, modified });
            }
            _ => self.skipped += 1,
        }
    }

    /// Whether a file is not any more what it was when the drill began.
    fn has_changed(&self, file: &SourceFile) -> bool {
        look(&self.root.join(&file.path)).ok() != Some((file.length, file.modified))
    }

    /// All their bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.length).sum()
    }

    /// Which of `clients` clients stores a file: they are dealt out whole, in turn.
    pub(crate) fn owner(file: usize, clients: u64) -> u64 {
        file as u64 % clients
    }

    /// The chunks that one of `clients` clients stores.
    pub(crate) fn share(&self, client: u64, clients: u64) -> Vec<Chunk> {
        let mine = self.files.iter().enumerate().filter(|(file, _)| Self::owner(*file, clients) == client);
        mine.flat_map(|(file, source)| (0..source.chunks()).map(move |number| Chunk { file, number })).collect()
    }

    /// A chunk's bytes, from the disk. A file that has shrunk meanwhile gives fewer.
    pub(crate) fn read(&self, chunk: Chunk) -> io::Result<Vec<u8>> {
        let source = &self.files[chunk.file];
        let start = chunk.number * CHUNK_BYTES;
        let mut file = File::open(self.root.join(&source.path))?;
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(CHUNK_BYTES.min(source.length - start)).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// For the clients, which read the same list.
    pub(crate) fn save(&self, path: &Path) -> io::Result<()> {
        let files: Vec<Value> = self.files.iter().map(|file| json!([file.path, file.length, file.modified])).collect();
        // A root that is not UTF-8 cannot be written down; the files below it could not be opened by the clients.
        let root = self.root.to_str().ok_or_else(|| io::Error::other("the folder's path is not UTF-8"))?;
        fs::write(path, json!({ "root": root, "files": files }).to_string())
    }

    /// What [`save`](Source::save) wrote.
    pub(crate) fn load(path: &Path) -> io::Result<Source> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("{}: no list of files", path.display()));
        let value: Value = serde_json::from_str(&fs::read_to_string(path)?).map_err(io::Error::other)?;
        let root = value["root"].as_str().ok_or_else(wrong)?.into();
        let list = value["files"].as_array().ok_or_else(wrong)?;
        let file = |item: &Value| {
            let (length, modified) = (item[1].as_u64()?, item[2].as_u64()?);
            Some(SourceFile { path: item[0].as_str()?.into(), length, modified })
        };
        let files = list.iter().map(file).collect::<Option<_>>().ok_or_else(wrong)?;
        Ok(Source { root, files, skipped: 0 })
    }
}

/// Length and time of the last change of a file that can be read.
fn look(path: &Path) -> io::Result<(u64, u64)> {
    let meta = File::open(path)?.metadata()?;
    let modified = meta.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((meta.len(), u64::try_from(modified.as_nanos()).unwrap_or(u64::MAX)))
}

/// Compares what came back, chunk by chunk, with the disk.
pub(crate) struct Comparison<'a> {
    source: &'a Source,
    /// By file: the chunks that came back right, and what was wrong first.
    files: BTreeMap<usize, (BTreeSet<u64>, Option<String>)>,
}

impl<'a> Comparison<'a> {
    pub(crate) fn new(source: &'a Source) -> Self {
        Self { source, files: BTreeMap::new() }
    }

    /// Takes the value of a key; keys of no file are ignored.
    pub(crate) fn take(&mut self, key: &str, value: &[u8]) {
        let Some(chunk) = Chunk::parse(key) else {
            return;
        };
        let (good, wrong) = self.files.entry(chunk.file).or_default();
        let known = self.source.files.get(chunk.file).is_some_and(|file| chunk.number < file.chunks());
        let same = known && self.source.read(chunk).is_ok_and(|bytes| bytes == value);
        if same {
            good.insert(chunk.number);
        } else {
            wrong.get_or_insert_with(|| format!("chunk {} differs", chunk.number));
        }
    }

    /// The files that did not come back byte for byte, and why; and how many cannot be judged, because they were
    /// changed on the disk meanwhile. A chunk that is `excused` need not be there.
    pub(crate) fn different(&self, excused: impl Fn(Chunk) -> bool) -> (Vec<String>, usize) {
        let (mut different, mut changed) = (Vec::new(), 0);
        for (at, file) in self.source.files.iter().enumerate() {
            let (good, wrong) = self.files.get(&at).cloned().unwrap_or_default();
            let owed = |number: &u64| !good.contains(number) && !excused(Chunk { file: at, number: *number });
            let missing = (0..file.chunks()).filter(owed).count();
            if wrong.is_none() && missing == 0 {
                continue;
            }
            if self.source.has_changed(file) {
                changed += 1;
                continue;
            }
            let missing = format!("{missing} of {} chunks are missing", file.chunks());
            different.push(format!("{}: {}", file.path, wrong.unwrap_or(missing)));
        }
        (different, changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(folder.path().join("sub/target")).expect("a folder");
        fs::write(folder.path().join("empty"), b"").expect("a file");
        fs::write(folder.path().join("sub/long"), vec![7; 40_000]).expect("a file");
        fs::write(folder.path().join("sub/target/made"), b"x").expect("a file");
        folder
    }

    #[test]
    fn every_file_is_found_once_and_dealt_to_one_client() {
        let folder = folder();
        let source = Source::walk(folder.path()).expect("a walk");
        let names: Vec<_> = source.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(names, ["empty", "sub/long"]);
        assert_eq!((source.share(0, 2).len(), source.share(1, 2).len()), (1, 3));
        let list = folder.path().join("list.json");
        source.save(&list).expect("a list");
        assert_eq!(Source::load(&list).expect("a list"), source);
    }

    #[test]
    fn a_comparison_sees_every_kind_of_damage() {
        let folder = folder();
        let source = Source::walk(folder.path()).expect("a walk");
        let feed = |change: &dyn Fn(Chunk, Vec<u8>) -> Option<Vec<u8>>| {
            let mut comparison = Comparison::new(&source);
            for chunk in source.share(0, 1) {
                if let Some(bytes) = change(chunk, source.read(chunk).expect("a chunk")) {
                    comparison.take(&chunk.key(), &bytes);
                }
            }
            comparison.different(|_| false).0
        };
        assert!(feed(&|_, bytes| Some(bytes)).is_empty());
        assert_eq!(feed(&|chunk, bytes| (chunk.file != 0).then_some(bytes)).len(), 1, "an empty file is missing");
        assert_eq!(feed(&|chunk, bytes| (chunk.number != 2).then_some(bytes)).len(), 1, "a chunk is missing");
        let flip = |chunk: Chunk, mut bytes: Vec<u8>| {
            if chunk.number == 1 {
                bytes[100] ^= 1;
            }
            Some(bytes)
        };
        assert_eq!(feed(&flip).len(), 1, "a bit is flipped");
        let comparison = Comparison::new(&source);
        assert_eq!(comparison.different(|chunk| chunk.file == 0).0.len(), 1, "one of the two is excused");
        let mut comparison = Comparison::new(&source);
        comparison.take("file/000001/000009", b"");
        let nobody = |_| false;
        assert!(comparison.different(nobody).0.iter().any(|text| text.contains("chunk 9")), "a chunk nobody stored");
        assert_eq!(comparison.different(|_| true).0.len(), 1, "what is wrong is wrong, whoever is excused");
        fs::write(folder.path().join("empty"), b"not any more").expect("a file");
        assert_eq!(comparison.different(nobody).1, 1, "an edited file is no loss");
    }
}
