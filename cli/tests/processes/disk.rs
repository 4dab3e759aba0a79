//! A disk that is full: a real one, of a megabyte or two. It takes the right to mount one.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::audit::{audit, numbered};
use crate::client::Client;
use crate::node::{Node, done};

const FLAGS: [&str; 2] = ["--suspend-after-s", "600"];

/// A file system in memory, for as long as this lives.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    /// `None`, and a word about it, where that is not allowed.
    fn mount(at: &'a Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mounted = run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "none", at.to_str().unwrap()]);
        if !mounted {
            eprintln!("skipped: no right to mount a file system");
        }
        mounted.then_some(Self(at))
    }

    fn grow(&self, size: &str) {
        assert!(run("mount", &["-o", &format!("remount,size={size}"), self.0.to_str().unwrap()]));
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        run("umount", &["-l", self.0.to_str().unwrap()]);
    }
}

fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

/// The primary's disk fills under load. It stops with a word that says so, what it acknowledged is with backup and
/// clients, and the backup takes over; with more room the old one would start again on what it had.
#[test]
fn a_primary_whose_disk_is_full_stops_and_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let place = dir.path().join("east");
    let Some(disk) = Disk::mount(&place, "24m") else { return };
    let mut primary = Node::start("east", dir.path(), &FLAGS);
    let mut backup = Node::backup("west", dir.path(), primary.endpoint(), &FLAGS);
    let endpoints = [primary.endpoint().to_owned(), backup.endpoint().to_owned()];
    let endpoints = endpoints.each_ref().map(String::as_str);
    let mut a = Client::start("a", &endpoints, None);
    a.append("list", "a-first;");
    a.call("load list a.");
    let mut filler = Client::start("filler", &endpoints, None);
    for _ in 0..64 {
        filler.call("bytes 1000000");
    }
    assert_eq!(primary.exits().code(), Some(1), "{}", primary.log());
    let log = primary.log();
    assert!(log.contains("error: Storage") && log.contains("No space left"), "{log}");

    done(&["promote", backup.endpoint()]);
    backup.opens();
    assert_eq!([backup.report("missing"), backup.report("gaps")], ["[]", "[]"]);
    let count = a.halt();
    let list = a.get("list");
    assert_eq!((audit(&list, &[&a]) as u64, numbered(&list, "a.")), (count + 1, count));

    // With more room, what is in its way is that it was succeeded, and not its disk.
    disk.grow("64m");
    primary.start_again();
    primary.wait("to know of its successor", |status| status["role"] != "primary");
    backup.kill();
}
