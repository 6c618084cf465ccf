//! Whatever the kernel, a process of another version, or memory that was damaged says: no decoder panics, and none
//! takes much more memory than its input.
//!
//! `HOLDFAST_FUZZ=n` sets how many inputs each test tries.

#[path = "../../engine/tests/fuzzing/mutator.rs"]
mod mutator;

use holdfast_driver::frontend::abi::{
    DISK_NAME, IN_HEADER_BYTES, Request, WRITE_IN_BYTES, accept_init, decode,
};
use holdfast_driver::keeper::protocol::{Answer, Call, MAX_MESSAGE_BYTES, Name, Refusal, receive, send};
use mutator::{Mutator, iterations};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use std::os::fd::AsFd;

const USUAL: u64 = 50_000;

/// A request as the kernel writes it.
fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = ((IN_HEADER_BYTES + body.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend(opcode.to_ne_bytes());
    bytes.extend(7_u64.to_ne_bytes());
    bytes.extend(2_u64.to_ne_bytes());
    bytes.resize(IN_HEADER_BYTES, 0);
    bytes.extend(body);
    bytes
}

fn requests() -> Vec<Vec<u8>> {
    let numbers = |all: &[u64]| all.iter().flat_map(|number| number.to_ne_bytes()).collect::<Vec<u8>>();
    let mut write = numbers(&[1, 4096, 16, 0, 0]);
    assert_eq!(write.len(), WRITE_IN_BYTES);
    write.extend([5; 16]);
    let init = [7_u32, 40, 1 << 17, 1 << 30 | 1 << 5, 1 << 7].map(u32::to_ne_bytes).concat();
    let mut all = vec![
        request(1, format!("{DISK_NAME}\0").as_bytes()),
        request(4, &numbers(&[8; 11])),
        request(15, &numbers(&[1, 8192, 4096, 0, 0])),
        request(16, &write),
        request(26, &init),
        request(28, &numbers(&[1, 2, 4096, 0, 0])),
        request(43, &numbers(&[1, 4096, 8192, 3])),
    ];
    all.extend((0..60).map(|opcode| request(opcode, &[0; 64])));
    all
}

/// All that a decoded request borrows lies within the request.
fn is_within(request: &Request<'_>, input: &[u8]) -> bool {
    let range = input.as_ptr_range();
    let within = |part: &[u8]| {
        let part = part.as_ptr_range();
        range.start <= part.start && part.end <= range.end
    };
    match request {
        Request::Lookup(name) => within(name),
        Request::Write { data, .. } => within(data),
        _ => true,
    }
}

#[test]
fn fuse_requests() {
    let samples = requests();
    assert!(samples.iter().all(|sample| decode(sample).is_ok()), "every sample is a request");
    for input in 0..iterations(USUAL) {
        let mut mutator = Mutator::new(input);
        let mut bytes = mutator.pick(&samples).clone();
        mutator.mutate(&mut bytes, &samples);
        if mutator.below(2) == 0 && bytes.len() >= 4 {
            let len = (bytes.len() as u32).to_ne_bytes();
            bytes[..4].copy_from_slice(&len);
        }
        let Ok((header, request)) = decode(&bytes) else { continue };
        assert!(header.len as usize <= bytes.len(), "{input}: {header:?}");
        assert!(is_within(&request, &bytes), "{input}: {request:?}");
        if let Request::Init(init) = request {
            let _ = accept_init(&init, 1 << 20, 64);
        }
    }
}

#[test]
fn messages_to_and_from_the_keeper() {
    let name = || Name::new("volume", "stack");
    let calls = [
        Call::Hello { oldest: 1, newest: 1 },
        Call::Put { name: name(), metadata: "{\"a\":1}".into() },
        Call::Get { name: name() },
        Call::List { after: Some(name()) },
        Call::Guard { key: "volume".into(), deadline_ms: 10_000 },
    ];
    let answers = [
        Answer::Hello { version: 1 },
        Answer::Entry { metadata: "m".into() },
        Answer::Names { names: vec![name(), name()], more: true },
        Answer::Refused { reason: Refusal::Full { what: "entries".into(), bound: 3 } },
    ];
    let calls = calls.iter().map(|call| serde_json::to_vec(call).expect("it has a JSON form"));
    let answers = answers.iter().map(|answer| serde_json::to_vec(answer).expect("it has a JSON form"));
    let samples: Vec<Vec<u8>> = calls.chain(answers).collect();
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("sockets");
    for input in 0..iterations(USUAL) {
        let mut mutator = Mutator::new(input);
        let mut bytes = mutator.pick(&samples).clone();
        mutator.mutate(&mut bytes, &samples);
        bytes.truncate(MAX_MESSAGE_BYTES);
        if bytes.is_empty() {
            continue;
        }
        for _ in 0..2 {
            rustix::net::send(&ours, &bytes, SendFlags::empty()).expect("the message is sent");
        }
        if let Ok(Some((call, fds))) = receive::<Call>(&theirs) {
            assert!(fds.is_empty(), "{input}");
            // What is understood can be said again.
            send(ours.as_fd(), &call, &[]).expect("the message is sent");
            let _ = receive::<Answer>(&theirs);
            let again = receive::<Call>(&theirs).expect("a message").expect("a call").0;
            assert_eq!(again, call, "{input}");
        } else {
            let _ = receive::<Answer>(&theirs);
        }
    }
}
