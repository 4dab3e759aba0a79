//! Errors by name, and as the end of a call.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;
use tonic::codegen::http::HeaderMap;
use tonic::{Code as Grpc, Status};

use super::super::failure::{ALL, name};
use super::super::*;
use crate::error::ErrorKind;

/// As the other side of a call gets it.
fn ended(status: &Status) -> Status {
    let mut headers = HeaderMap::new();
    status.add_header(&mut headers).unwrap();
    Status::from_header_map(&headers).unwrap()
}

#[test]
fn every_code_has_its_own_name_and_is_known_by_it() {
    let names: BTreeSet<&str> = ALL.iter().map(|code| name(*code)).collect();
    assert_eq!(names.len(), ALL.len());
    for code in ALL {
        assert_eq!(name(*code), format!("{code:?}"), "as people read it");
        let error = Error::new(*code, "why");
        assert_eq!(Error::from(pb::Error::from(error.clone())), error);
        assert_eq!(from_status(&ended(&to_status(&error))), error);
    }
}

#[test]
fn a_code_of_a_later_version_keeps_its_text() {
    let later = pb::Error { code: "TooQuiet".into(), message: "nobody said a word".into() };
    assert_eq!(Error::from(later), Error::new(Code::Protocol, "TooQuiet: nobody said a word"));

    let mut status = to_status(&Error::new(Code::Busy, "nobody said a word"));
    status.metadata_mut().insert("tagalong-code", "TooQuiet".parse().unwrap());
    assert_eq!(from_status(&ended(&status)), Error::new(Code::Protocol, "TooQuiet: nobody said a word"));
}

#[test]
fn a_status_of_somebody_else_says_what_to_do_next() {
    let gone = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "connection reset by peer");
    let mut broken = Status::unknown("transport error");
    broken.set_source(Arc::new(gone));
    let foreign = [
        (Status::unavailable("connection refused"), Code::Unavailable, ErrorKind::Rediscover),
        (Status::cancelled("stream reset"), Code::Unavailable, ErrorKind::Rediscover),
        (broken, Code::Unavailable, ErrorKind::Rediscover),
        (Status::deadline_exceeded("late"), Code::Deadline, ErrorKind::Retry),
        (Status::resource_exhausted("calm down"), Code::Busy, ErrorKind::BackOff),
        (Status::out_of_range("message length"), Code::TooLarge, ErrorKind::FixCall),
        (Status::unauthenticated("who are you"), Code::InvalidArgument, ErrorKind::FixCall),
        (Status::permission_denied("not you"), Code::InvalidArgument, ErrorKind::FixCall),
        (Status::invalid_argument("what"), Code::InvalidArgument, ErrorKind::FixCall),
        (Status::unimplemented("no such service"), Code::WrongVersion, ErrorKind::Report),
        (Status::internal("cannot decode"), Code::Protocol, ErrorKind::Report),
        (Status::unknown("a handler's own"), Code::Protocol, ErrorKind::Report),
    ];
    for (status, code, kind) in foreign {
        let error = from_status(&status);
        assert_eq!((error.code(), error.kind()), (code, kind), "{status}");
        assert!(error.message().contains(status.message()), "{error}");
    }
}

#[test]
fn a_broken_stream_names_its_first_cause() {
    let gone = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "connection reset by peer");
    let mut broken = Status::unknown("transport error");
    broken.set_source(Arc::new(gone));
    let error = from_status(&broken);
    assert!(error.message().ends_with("transport error: connection reset by peer"), "{error}");
}

#[test]
fn only_what_may_help_invites_proxies_to_retry() {
    let retried = ALL.iter().filter(|code| to_status(&Error::new(**code, "")).code() == Grpc::Unavailable);
    for code in retried {
        let kind = Error::new(*code, "").kind();
        assert!(matches!(kind, ErrorKind::BackOff | ErrorKind::Rediscover), "{code:?}");
    }
}

#[test]
fn a_novel_is_cut_where_a_character_ends() {
    let error = Error::new(Code::Storage, "☃".repeat(10_000));
    let back = from_status(&ended(&to_status(&error)));
    assert_eq!(back.code(), Code::Storage);
    assert_eq!(back.message(), "☃".repeat(4096 / 3));
}

proptest! {
    #[test]
    fn any_message_comes_back(code in select(ALL), message in any::<String>()) {
        let error = Error::new(code, message);
        prop_assert_eq!(&Error::from(pb::Error::from(error.clone())), &error);
        prop_assume!(error.message().len() <= 4096);
        prop_assert_eq!(from_status(&ended(&to_status(&error))), error);
    }
}
