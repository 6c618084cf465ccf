//! The keeper as a process: what it holds, refuses, and how its client survives its death.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use common::{KeeperProcess, LIMIT, eventually};
use holdfast_driver::keeper::protocol::{self, Answer, Call, MAX_FDS, Name, Refusal};
use holdfast_driver::keeper::{Link, LinkError};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

fn file_with(text: &str) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn text_of(fd: OwnedFd) -> String {
    let mut file = File::from(fd);
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

fn start() -> (tempfile::TempDir, KeeperProcess, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("keeper.sock");
    (dir, KeeperProcess::start(&socket), socket)
}

fn raw_connection(socket: &Path) -> OwnedFd {
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let fd = fd.unwrap();
    rustix::net::connect(&fd, &SocketAddrUnix::new(socket).unwrap()).unwrap();
    fd
}

fn ask(socket: &OwnedFd, call: &Call) -> Answer {
    protocol::send(socket.as_fd(), call, &[]).unwrap();
    protocol::receive(socket).unwrap().unwrap().0
}

#[test]
fn a_successor_gets_what_its_predecessor_put() {
    let (_dir, _keeper, socket) = start();
    let (one, two) = (file_with("one"), file_with("two"));
    let predecessor = Link::connect(&socket, LIMIT).unwrap();
    let name = Name::new("volume", "stack");
    predecessor.put(name.clone(), "text".into(), &[one.as_fd(), two.as_fd()]).unwrap();
    predecessor.put(Name::new("volume", "dirty"), String::new(), &[two.as_fd()]).unwrap();
    drop((predecessor, one, two));

    let successor = Link::connect(&socket, LIMIT).unwrap();
    assert_eq!(successor.list().unwrap(), [Name::new("volume", "dirty"), name.clone()]);
    let entry = successor.get(&name).unwrap().unwrap();
    assert_eq!(entry.metadata, "text");
    assert_eq!(entry.fds.into_iter().map(text_of).collect::<Vec<_>>(), ["one", "two"]);
    successor.drop_entry(&name).unwrap();
    successor.drop_entry(&name).unwrap();
    assert!(successor.get(&name).unwrap().is_none());
}

#[test]
fn a_restarted_keeper_is_given_everything_again() {
    let (_dir, mut keeper, socket) = start();
    let link = Link::connect(&socket, LIMIT).unwrap();
    let name = Name::new("volume", "stack");
    link.put(name.clone(), "text".into(), &[file_with("kept").as_fd()]).unwrap();
    keeper.kill();
    eventually("a failing call", || matches!(link.list(), Err(LinkError::Unreachable { .. })));
    keeper.restart();
    eventually("the entry in the new keeper", || link.list().is_ok_and(|names| names == [name.clone()]));

    let other = Link::connect(&socket, LIMIT).unwrap();
    let entry = other.get(&name).unwrap().unwrap();
    assert_eq!(entry.fds.into_iter().map(text_of).collect::<Vec<_>>(), ["kept"]);
}

#[test]
fn a_missing_keeper_is_an_error_within_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let refused = Link::connect(&dir.path().join("nobody.sock"), Duration::from_millis(50));
    assert!(matches!(refused, Err(LinkError::Unreachable { .. })));
}

#[test]
fn a_client_without_a_common_version_is_told_so() {
    let (_dir, _keeper, socket) = start();
    Link::connect(&socket, LIMIT).unwrap();
    let connection = raw_connection(&socket);
    let early = ask(&connection, &Call::List { after: None });
    assert!(matches!(early, Answer::Refused { reason: Refusal::Malformed { .. } }), "{early:?}");
    let newer = ask(&connection, &Call::Hello { oldest: 1000, newest: 1001 });
    assert!(matches!(newer, Answer::Refused { reason: Refusal::Version { .. } }), "{newer:?}");
    let wider = ask(&connection, &Call::Hello { oldest: 1, newest: 1001 });
    assert_eq!(wider, Answer::Hello { version: protocol::NEWEST_VERSION });
}

#[test]
fn a_message_that_is_none_ends_only_its_own_connection() {
    let (_dir, _keeper, socket) = start();
    let link = Link::connect(&socket, LIMIT).unwrap();
    let connection = raw_connection(&socket);
    protocol::send(connection.as_fd(), &"no call", &[]).unwrap();
    assert!(protocol::receive::<Answer>(&connection).unwrap().is_none());
    assert!(link.list().unwrap().is_empty());
}

#[test]
fn bounds_are_refusals() {
    let (_dir, _keeper, socket) = start();
    let link = Link::connect(&socket, LIMIT).unwrap();
    let file = file_with("");
    let name = Name::new("volume", "stack");
    let too_many = vec![file.as_fd(); MAX_FDS + 1];
    link.put(name.clone(), String::new(), &too_many).unwrap_err();
    eventually("another connection", || link.list().is_ok());
    let too_long = link.put(name.clone(), "x".repeat(protocol::MAX_METADATA_BYTES + 1), &[file.as_fd()]);
    assert!(matches!(too_long, Err(LinkError::Refused(Refusal::Malformed { .. }))), "{too_long:?}");
    let too_late = link.guard("volume", file.as_fd(), Duration::from_secs(3600));
    assert!(matches!(too_late, Err(LinkError::Refused(Refusal::Malformed { .. }))), "{too_late:?}");
    for number in 0..protocol::MAX_ENTRIES {
        link.put(Name::new(&number.to_string(), "stack"), String::new(), &[file.as_fd()]).unwrap();
    }
    let full = link.put(name, String::new(), &[file.as_fd()]);
    assert!(matches!(full, Err(LinkError::Refused(Refusal::Full { .. }))), "{full:?}");
}
