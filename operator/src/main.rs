//! The program `holdfast-operator`.

use std::sync::Arc;

use clap::Parser;
use holdfast_engine::env::Env;
use holdfast_operator::args::Args;
use holdfast_operator::engine_store::EngineStore;
use holdfast_operator::run::start;

#[tokio::main]
async fn main() -> Result<(), holdfast_operator::error::Error> {
    let args = Args::parse();
    let store = EngineStore::new(Env::system(), args.pool_host_path.as_ref().map(Into::into));
    start(args, Arc::new(store)).await
}
