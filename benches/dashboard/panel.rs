//! The panels of the dashboard, as its JSON has them.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::prometheus::{Prometheus, Series};

#[derive(Debug, Deserialize)]
struct Dashboard {
    panels: Vec<Panel>,
}

/// One panel.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) grid_pos: Place,
    field_config: FieldConfig,
    targets: Vec<Target>,
}

/// Where it is, on a grid of 24 columns.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Place {
    pub(crate) x: u32,
    pub(crate) y: u32,
    pub(crate) w: u32,
    pub(crate) h: u32,
}

#[derive(Debug, Deserialize)]
struct FieldConfig {
    defaults: Defaults,
}

#[derive(Debug, Deserialize)]
struct Defaults {
    #[serde(default)]
    unit: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    expr: String,
    #[serde(default)]
    legend_format: String,
}

/// What is drawn: a name and points.
#[derive(Debug, Clone)]
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

pub(crate) fn of_dashboard(text: &str) -> Result<Vec<Panel>> {
    let dashboard: Dashboard = serde_json::from_str(text).context("the dashboard")?;
    Ok(dashboard.panels)
}

impl Panel {
    /// Its curves, with the variables as Grafana would set them.
    pub(crate) fn ask(&self, prometheus: &Prometheus) -> Result<Vec<Curve>> {
        let mut curves = Vec::new();
        for target in &self.targets {
            let query = target.expr.replace("$job", ".*");
            let query = query.replace("$__rate_interval", "10s");
            let found = prometheus.range(&query);
            let found = found.with_context(|| format!("panel {:?}", self.title))?;
            curves.extend(found.into_iter().map(|series| target.curve(series)));
        }
        Ok(curves)
    }

    /// A value with its unit.
    pub(crate) fn value(&self, value: f64) -> String {
        let scaled = |steps: &[&str], base: f64| {
            let (mut value, mut step) = (value, 0);
            while value.abs() >= base && step + 1 < steps.len() {
                (value, step) = (value / base, step + 1);
            }
            format!("{value:.0} {}", steps[step])
        };
        match self.field_config.defaults.unit.as_str() {
            "bytes" => scaled(&["B", "KiB", "MiB", "GiB"], 1024.0),
            "µs" => scaled(&["µs", "ms", "s"], 1000.0),
            "ms" => scaled(&["ms", "s"], 1000.0),
            "ops" if value < 10.0 => format!("{value:.1}/s"),
            "ops" => format!("{value:.0}/s"),
            _ if value.abs() < 10.0 => format!("{value:.1}"),
            _ => format!("{value:.0}"),
        }
    }
}

impl Target {
    fn curve(&self, series: Series) -> Curve {
        let mut name = self.legend_format.clone();
        if let Value::Object(labels) = &series.labels {
            for (label, value) in labels {
                let value = value.as_str().unwrap_or_default();
                name = name.replace(&format!("{{{{{label}}}}}"), value);
            }
        }
        Curve {
            name,
            points: series.points,
        }
    }
}
