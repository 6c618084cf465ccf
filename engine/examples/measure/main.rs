//! What can be measured of the engine without a mounted device: one measurement a run, one JSON object as its answer.
//!
//! `cargo xtask bench` runs it and makes a table of it. By hand:
//! `cargo run --release -p holdfast-engine --example measure -- codec`.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on ends with the reason")]

mod archive;
mod codec;
mod open;
mod scene;
mod store;
mod write;

use std::process::ExitCode;

const USAGE: &str = "measure codec | put POOL-FILE COUNT | bulk POOL-FILE OBJECTS PARALLEL | open DIR EXTENTS | \
                     archive DIR MIB | write DIR MIB | write-sealed DIR MIB";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let answer = match words.as_slice() {
        ["codec"] => codec::measure(),
        ["put", pool, count] => store::puts(pool, number(count)).await,
        ["bulk", pool, objects, parallel] => store::bulk(pool, number(objects), number(parallel)).await,
        ["open", dir, extents] => open::measure(dir.as_ref(), number(extents)).await,
        ["archive", dir, mib] => archive::measure(dir.as_ref(), number(mib)).await,
        ["write", dir, mib] => write::measure(dir.as_ref(), number(mib), None).await,
        ["write-sealed", dir, mib] => {
            let key = holdfast_engine::codec::UserKey::random(&*holdfast_engine::env::Env::system().entropy);
            write::measure(dir.as_ref(), number(mib), Some(&key)).await
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    println!("{answer}");
    ExitCode::SUCCESS
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("{word:?} is no number; {USAGE}"))
}
