//! The traffic of an established session: frames in, which the cache has before anything follows from them, and
//! frames out, as window and cache have room.

use super::{Client, ClientEvent, ClientOutput, Command, Live};
use crate::client::image::CacheOp;
use crate::error::{Code, Error};
use crate::log::{Body, Digest, HEADER_COST, Header, Level, Lsn, Origin, Request, Tag, Time};
use crate::message::{ClientFrame, ClientMessage, FRAME_BYTES, NodeFrame, Outcome, Query, Response, Write};
use crate::rule::{self, Rule};
use bytes::Bytes;

impl Client {
    pub(super) fn on_frame(&mut self, now: Time, frame: NodeFrame, out: &mut Vec<ClientOutput>) {
        let Some(session) = &mut self.session else {
            return;
        };
        let Some(live) = session.live.as_mut().filter(|_| session.epoch == frame.epoch) else {
            return;
        };
        let NodeFrame {
            epoch,
            seq,
            stable,
            settled,
            manifest,
            places,
            shares,
            prompt,
            short,
            responses,
            results,
            closed,
        } = frame;
        live.seq = seq;
        live.short = short;
        let mut to_hold = !manifest.is_empty() || !places.is_empty() || !shares.is_empty();
        if !manifest.is_empty() {
            self.keep(CacheOp::Headers(manifest));
        }
        if !places.is_empty() {
            self.keep(CacheOp::Places(places));
        }
        for share in shares.into_iter().filter(|share| share.epoch == epoch) {
            self.keep(CacheOp::Share(share));
        }
        // In this order, for a crash may leave the cache with a part of it: what was observed must be explained by
        // headers and tags, and what is answered was observed.
        for response in &responses {
            self.keep_tag(response);
        }
        let replied = responses.iter().filter(|response| response.outcome.is_some());
        let replied = replied.filter_map(|response| response.tag.map(|tag| tag.lsn));
        let observed = replied.chain(results.iter().map(|result| result.lsn)).max();
        if let Some(lsn) = observed.filter(|lsn| (epoch, *lsn) > self.image.observed) {
            self.keep(CacheOp::Observed(epoch, lsn));
        }
        let mut done = Vec::new();
        for response in responses {
            to_hold |= response.tag.is_some_and(|tag| tag.lsn > stable);
            done.extend(self.on_response(response));
        }
        if (epoch, stable) > self.image.stable {
            self.keep(CacheOp::Stable(epoch, stable));
        }
        if self.image.awaits_settled(epoch, settled) {
            self.keep(CacheOp::Settled(epoch, settled));
        }
        self.check_shares(out);
        self.store(out);
        for output in done {
            self.gate(output);
        }
        for result in results {
            if self.asking.remove(&result.id).is_some_and(|asking| !asking.forgotten) {
                self.gate(ClientOutput::Result { id: result.id, result: result.result });
            }
        }
        if prompt {
            self.confirm_due = Some(now);
        } else if to_hold {
            self.confirm_due.get_or_insert(now.after(self.settings.confirm_delay_us));
        }
        if closed && self.closing {
            self.ended = true;
            self.gate(ClientOutput::Closed);
        }
    }

    /// A node that gives this cache more than it said it takes is not one of ours.
    fn check_shares(&mut self, out: &mut Vec<ClientOutput>) {
        let most = 2 * self.settings.share_bytes_max;
        if self.image.share_bytes > most
            && let Some(session) = self.session.take()
        {
            let why = format!("the node gave more shares than the {most} bytes that this cache has room for");
            self.gate(ClientOutput::Event(ClientEvent::Refused(Error::new(Code::Protocol, why))));
            out.push(ClientOutput::Close(session.conn));
            self.nodes.remove(&session.conn);
            self.end_stream();
        }
    }

    /// Keeps a response's tag: the command is held.
    fn keep_tag(&mut self, response: &Response) {
        let Some(command) = self.image.commands.get(&response.request).filter(|command| command.reply.is_none()) else {
            return;
        };
        if let Some(tag) = response.tag.filter(|tag| command.tag != Some(*tag)) {
            self.keep(CacheOp::Tag { request: response.request, tag });
        }
    }

    /// Keeps a response's reply. What the application is to hear follows once the cache has it.
    pub(super) fn on_response(&mut self, response: Response) -> Option<ClientOutput> {
        let Response { request, tag, outcome } = response;
        let Some(command) = self.image.commands.get(&request) else {
            self.hold_filler(request, tag);
            return None;
        };
        if command.reply.is_some() {
            return None;
        }
        let outcome = outcome?;
        match &outcome {
            Outcome::Reply(reply) => {
                let reply = Digest::crc32(reply);
                self.keep(CacheOp::Answered { request, reply });
            }
            Outcome::Superseded => self.keep(CacheOp::Superseded(request)),
        }
        Some(ClientOutput::Done { request, outcome, tag })
    }

    /// The tag of a number that was spent before. If it is not stable, a filler took the place of a command that a recovery
    /// lost: nobody but this client will ever confirm that `Noop`, so its header has to be held like any other.
    fn hold_filler(&mut self, request: Request, tag: Option<Tag>) {
        let Some(tag) = tag.filter(|tag| tag.lsn > tag.stable && (tag.epoch, tag.lsn) > self.image.stable) else {
            return;
        };
        if tag.hold_until != Some(Lsn(0)) && request <= self.image.last {
            let client = self.image.identity.as_ref().expect("a client has an identity").client;
            let Write { answered, digest, .. } = filler(request);
            let (body, origin) = (Body::Noop, Some(Origin { client, request }));
            let Tag { epoch, lsn, time, .. } = tag;
            self.keep(CacheOp::Headers(vec![Header { epoch, lsn, body, origin, time, answered, length: 0, digest }]));
        }
    }

    pub(super) fn fits_window(&self, live: &Live, request: Request, length: u64) -> bool {
        let low = self.image.first_unanswered().min(request);
        // What is being sent again counts itself among the unanswered.
        let again = if request <= self.image.last { length } else { 0 };
        let bytes = self.image.unanswered_bytes() - again;
        request.0 - low.0 < live.window && (request == low || bytes + length <= live.window_bytes)
    }

    pub(super) fn fits_cache(&self, length: u64) -> bool {
        let idle = self.image.commands.is_empty();
        idle || self.image.bytes + length + HEADER_COST <= self.settings.commands_bytes_max()
    }

    /// Sends what window and cache have room for, with the confirm that is owed.
    pub(super) fn send(&mut self, now: Time, confirm: bool, out: &mut Vec<ClientOutput>) {
        loop {
            let Some(session) = &self.session else { return };
            let (epoch, Some(live)) = (session.epoch, session.live.clone()) else {
                return;
            };
            let mut frame = ClientFrame { epoch, confirm: live.seq, ..ClientFrame::default() };
            self.gather_writes(&mut frame);
            if !rule::on(Rule::ResendInOrder) {
                frame.writes.reverse();
            }
            let mut bytes: u64 = frame.writes.iter().map(|write| write.payload.len() as u64 + HEADER_COST).sum();
            for (id, asking) in self.asking.iter_mut().filter(|(_, asking)| !asking.sent) {
                if bytes >= FRAME_BYTES {
                    break;
                }
                bytes += asking.payload.len() as u64 + HEADER_COST;
                asking.sent = true;
                frame.queries.push(Query { id: *id, level: asking.level, payload: asking.payload.clone() });
            }
            let idle = self.unsent.is_empty() && self.image.unanswered().next().is_none() && self.asking.is_empty();
            frame.close = self.closing && idle && !live.close_sent;
            let work = !frame.writes.is_empty() || !frame.queries.is_empty() || frame.close;
            let owed = confirm && live.confirmed < live.seq;
            if !work && !owed {
                if confirm || live.confirmed == live.seq {
                    self.confirm_due = None;
                }
                let _ = now;
                return;
            }
            if let Some(live) = self.session.as_mut().and_then(|session| session.live.as_mut()) {
                live.confirmed = live.seq;
                live.close_sent |= frame.close;
            }
            self.confirm_due = None;
            self.store(out);
            self.send_to_session(ClientMessage::Frame(frame));
        }
    }

    /// Moves commands into `frame`: what is to be sent again first, in order, then what is new.
    pub(super) fn gather_writes(&mut self, frame: &mut ClientFrame) {
        let mut bytes = 0;
        while bytes < FRAME_BYTES {
            let Some(live) = self.session.as_ref().and_then(|session| session.live.as_ref()) else {
                return;
            };
            let request = live.next;
            let reign = self.image.reported;
            let again = |command: &&Command| {
                let held = command.tag.is_some_and(|tag| tag.epoch < reign);
                command.reply.is_none() && (!held || rule::on(Rule::BackToInDoubt))
            };
            let write = if let Some(command) = self.image.commands.get(&request).filter(again) {
                if !self.fits_window(live, request, command.payload.len() as u64) {
                    return;
                }
                to_write(request, command)
            } else if request <= self.image.last {
                // Answered, or superseded: the number is spent, and only keeps the stream's numbers dense.
                filler(request)
            } else if let Some(unsent) = self.unsent.get(&request) {
                let length = unsent.payload.len() as u64;
                if !self.fits_window(live, request, length) || !self.fits_cache(length) {
                    return;
                }
                self.first_send(request)
            } else {
                return;
            };
            bytes += write.payload.len() as u64 + HEADER_COST;
            frame.writes.push(write);
            if let Some(live) = self.session.as_mut().and_then(|session| session.live.as_mut()) {
                live.next = request.next();
            }
        }
    }

    /// A command leaves for the first time: from now on it is in doubt, and the cache has to have it.
    pub(super) fn first_send(&mut self, request: Request) -> Write {
        let unsent = self.unsent.remove(&request).expect("looked up by the caller");
        self.unsent_bytes -= unsent.payload.len() as u64 + HEADER_COST;
        let command = Command {
            answered: self.image.first_unanswered().min(request).prev(),
            level: unsent.level,
            withdrawn: unsent.withdrawn,
            digest: unsent.digest,
            payload: unsent.payload,
            tag: None,
            reply: None,
        };
        let write = to_write(request, &command);
        self.keep(CacheOp::Command { request, command });
        write
    }
}

fn to_write(request: Request, command: &Command) -> Write {
    Write {
        request,
        answered: command.answered,
        level: command.level,
        withdrawn: command.withdrawn,
        digest: command.digest,
        payload: command.payload.clone(),
    }
}

fn filler(request: Request) -> Write {
    Write {
        request,
        answered: Request(0),
        level: Level::Local,
        withdrawn: true,
        digest: Digest::crc32(&[]),
        payload: Bytes::new(),
    }
}
