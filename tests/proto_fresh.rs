//! The committed code in `src/net/pb.rs` is what `proto/tagalong/v1/tagalong.proto` generates today.
//!
//! After a change to the proto file, bring the code up to date with
//!
//! ```sh
//! TAGALONG_BLESS=1 cargo test --no-default-features --test proto_fresh
//! ```
//!
//! and commit both. (Without the default features, since `src/net/convert` has yet to follow.) No protoc is needed, here
//! or by anyone who builds the crate.

use std::path::Path;
use std::{env, fs};

const GENERATED: &str = "src/net/pb.rs";
const UPDATE: &str = "TAGALONG_BLESS=1 cargo test --no-default-features --test proto_fresh";

fn generate(root: &Path) -> String {
    let proto = root.join("proto");
    let descriptors = protox::compile(["tagalong/v1/tagalong.proto"], [&proto])
        .unwrap_or_else(|error| panic!("proto/tagalong/v1/tagalong.proto does not compile: {error:?}"));
    let out = tempfile::tempdir().expect("a temporary folder");
    tonic_prost_build::configure()
        .out_dir(out.path())
        // Payloads are slices of the receive buffer; src/net/convert.rs says which of them are copied out of it.
        .bytes(".")
        // Rare, and many times as large as the other kinds: without the box every record in memory would pay for it.
        .boxed(".tagalong.v1.Header.body.epoch_start")
        // Idle streams are many; src/net/buffers.rs says more.
        .codec_path("crate::net::buffers::Codec")
        .compile_fds(descriptors)
        .expect("generated code");
    fs::read_to_string(out.path().join("tagalong.v1.rs")).expect("one file for the package tagalong.v1")
}

#[test]
fn the_committed_code_is_what_the_proto_file_generates() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = generate(root);
    let path = root.join(GENERATED);
    if env::var_os("TAGALONG_BLESS").is_some() {
        fs::write(&path, &fresh).expect("a writable source folder");
    }
    let committed = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{GENERATED}: {error}"));
    if committed == fresh {
        return;
    }
    let line = committed.lines().zip(fresh.lines()).take_while(|(old, new)| old == new).count();
    panic!(
        "{GENERATED} is not what the proto file generates, from line {} on:\n  committed: {}\n  generated: {}\n\
         Bring it up to date with `{UPDATE}`, and commit it.",
        line + 1,
        committed.lines().nth(line).unwrap_or("(the end)"),
        fresh.lines().nth(line).unwrap_or("(the end)"),
    );
}
