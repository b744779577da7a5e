use anyhow::Result;
use clap::Args;
use crate::options::*;
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    reference: String,
}
pub(crate) async fn run(_: &Globals, _: Arguments) -> Result<()> { Ok(()) }
