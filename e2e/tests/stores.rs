//! Each store starts, answers, and is gone when dropped. Most need npm, Python and Debian's Ceph packages, so they run
//! as a stage of `cargo xtask test` and not with the unit tests.

use std::net::{SocketAddr, TcpStream};

use holdfast_e2e::{
    Result,
    stores::{Azurite, BUCKET, Ceph, Gcs, Location, Moto, S3rver, S3sFs, Store},
};

fn address(location: &Location) -> SocketAddr {
    let endpoint = location.endpoint.as_deref().expect("a store on the network has an endpoint");
    let rest = endpoint.strip_prefix("http://").expect("these stores speak plain HTTP");
    rest.split('/').next().and_then(|a| a.parse().ok()).expect("endpoints here are addresses")
}

fn lives_and_dies<S: Store>(start: impl FnOnce() -> Result<S>) {
    let store = start().unwrap_or_else(|error| panic!("{error}"));
    let location = store.location("pool");
    assert!(location.url.ends_with(&format!("://{BUCKET}/pool")), "{}", location.url);
    TcpStream::connect(address(&location)).expect("the store answers");
    drop(store);
    TcpStream::connect(address(&location)).expect_err("the store is gone");
}

#[test]
#[ignore = "installs software"]
fn moto() {
    lives_and_dies(Moto::start);
}

#[test]
#[ignore = "installs software"]
fn azurite() {
    lives_and_dies(Azurite::start);
}

#[test]
fn gcs() {
    lives_and_dies(Gcs::start);
}

#[test]
#[ignore = "installs software"]
fn s3rver() {
    lives_and_dies(S3rver::start);
}

#[test]
#[ignore = "installs software"]
fn s3s_fs() {
    lives_and_dies(S3sFs::start);
}

#[test]
#[ignore = "installs software"]
fn ceph() {
    lives_and_dies(Ceph::start);
}

#[test]
#[ignore = "installs software"]
fn ceph_survives_the_death_of_an_osd_and_of_its_gateway() {
    let mut ceph = Ceph::start().unwrap_or_else(|error| panic!("{error}"));
    ceph.kill_osd(1);
    ceph.freeze_osd(1).expect("a killed OSD needs no freezing");
    ceph.start_osd(1).expect("the OSD starts again");
    ceph.wait_until_healthy().expect("all copies come back");
    let address = address(&ceph.location("pool"));
    ceph.kill_gateway();
    TcpStream::connect(address).expect_err("the gateway is gone");
    ceph.start_gateway().expect("the gateway starts again");
    TcpStream::connect(address).expect("the gateway answers");
}
