//! `soci inspect`: what the running daemon shows, and from where.

mod explain;
mod files;
mod list;
mod map;
mod value;

pub(crate) use self::value::{prepared_layer as prepared_value, read as read_value};

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use crate::control_client::Control;
use crate::options::Globals;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A view by its number, mount point, image, or container [default: list all]
    #[arg(value_name = "VIEW|IMAGE|CONTAINER")]
    view: Option<String>,
    /// Which files were read, in the order of their first read
    #[arg(long, requires = "view")]
    files: bool,
    /// Where a path comes from: layer, entry, spans
    #[arg(long, value_name = "PATH", requires = "view", conflicts_with_all = ["files", "watch"])]
    explain: Option<String>,
    /// Show it again and again
    #[arg(long, short)]
    watch: bool,
    /// Time between two shows of --watch
    #[arg(long, default_value = "1s", value_parser = crate::duration::parse, value_name = "TIME")]
    interval: Duration,
}

pub(crate) async fn run(globals: &Globals, arguments: Arguments) -> Result<()> {
    let mut control = Control::new(globals);
    if !arguments.watch {
        let text = show(&mut control, &arguments, globals.json).await?;
        return Ok(std::io::stdout().lock().write_all(text.as_bytes())?);
    }
    ensure!(
        !arguments.interval.is_zero(),
        "--interval must be above zero"
    );
    let clear = if std::io::stdout().is_terminal() && !globals.json {
        "\x1b[H\x1b[2J"
    } else {
        ""
    };
    loop {
        let text = show(&mut control, &arguments, globals.json).await?;
        let mut out = std::io::stdout().lock();
        write!(out, "{clear}{text}")?;
        out.flush()?;
        drop(out);
        tokio::time::sleep(arguments.interval).await;
    }
}

async fn show(control: &mut Control, arguments: &Arguments, as_json: bool) -> Result<String> {
    let value = match &arguments.view {
        None => {
            let views = control.views().await?;
            let outcome = control.client.prepared(()).await;
            let prepared = control.answer(outcome)?.layers;
            match as_json {
                true => value::list(&views, &prepared),
                false => return Ok(list::text(&views, &prepared)),
            }
        }
        Some(name) => {
            let target = control.find(name).await?;
            if let Some(path) = &arguments.explain {
                return explain::show(control, &target, path, as_json).await;
            }
            if arguments.files {
                return files::show(control, &target, as_json).await;
            }
            let request = proto::spanshot::control::v1::ViewRequest {
                view: target.view.id,
            };
            let outcome = control.client.spans(request).await;
            let spans = control.answer(outcome)?.layers;
            match as_json {
                true => value::view_with_spans(&target.view, &spans),
                false => return Ok(map::text(&target.view, &spans)),
            }
        }
    };
    pretty(&value)
}

fn pretty(value: &serde_json::Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}
