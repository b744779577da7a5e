//! Programs that know credentials.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

/// Largest answer read, in bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// A variable of a program's environment, as Kubernetes' configurations have it.
#[derive(Deserialize)]
pub(super) struct Variable {
    name: String,
    value: String,
}

impl Variable {
    /// Its name and its value.
    pub(super) fn pair(&self) -> (&str, &str) {
        (&self.name, &self.value)
    }
}

/// What a program said.
pub(super) struct Answer {
    /// Its exit status was 0.
    pub(super) success: bool,
    /// What it wrote to its standard output, which may be secret.
    pub(super) output: Vec<u8>,
}

/// Runs `program` with `arguments` and further environment, gives it `input` and waits at most `patience`; after
/// that it is killed. The error never contains what it wrote.
pub(super) async fn ask(
    program: &Path,
    arguments: &[String],
    environment: &[(&str, &str)],
    input: &[u8],
    patience: Duration,
) -> Result<Answer, String> {
    let child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|cause| format!("cannot be run: {cause}"))?;
    tokio::time::timeout(patience, converse(child, input))
        .await
        .map_err(|_| format!("no answer in {} s", patience.as_secs()))?
        .map_err(|cause| cause.to_string())
}

async fn converse(mut child: Child, input: &[u8]) -> std::io::Result<Answer> {
    if let Some(mut stdin) = child.stdin.take() {
        // One that has answered without reading its input is right too.
        let _ = stdin.write_all(input).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_ANSWER).read_to_end(&mut output).await?;
    }
    Ok(Answer {
        success: child.wait().await?.success(),
        output,
    })
}
