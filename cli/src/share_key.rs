//! A new secret for the shares of a group.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tagalong::net::ShareKey;
use tagalong::{Code, Error, Result};

#[derive(Args)]
pub(crate) struct ShareKeyArgs {
    /// The file to write: it must not be there yet. Give a copy to every node of the group, and to nobody else.
    file: PathBuf,
}

pub(crate) fn share_key(args: &ShareKeyArgs) -> Result<ExitCode> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let path = args.file.display();
    let failed = |error: std::io::Error| Error::new(Code::InvalidArgument, format!("cannot write {path}: {error}"));
    let key = ShareKey::generate()?;
    let mut file = options.open(&args.file).map_err(failed)?;
    writeln!(file, "{}", key.to_hex()).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}
