//! `coordinator plot`: the curves of a run as one SVG, from its `metrics.jsonl`, wherever that is stored.
//!
//! Panels above each other share the axis of images seen: what the networks see (resolution and fades), a panel for each
//! metric, losses, speed. Drawing is a pure function of events; values that are not finite leave a gap.

use crate::failure::Failure;
use crate::s3_args::S3Args;
use clap::Args;
use common::exit::Exit;
use common::metrics::{Event, Quality, Tick, names};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use storage::{StorageError, Store, resolve_run_url};

/// Largest `metrics.jsonl` that is read.
const METRICS_BYTES_MAX: u64 = 256 << 20;
const WIDTH: u32 = 900;
const PANEL: u32 = 230;
/// Colours that stay apart for colour-blind readers (Okabe & Ito 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(80, 80, 80),
];

/// Which run, and where the picture goes.
#[derive(Debug, Args)]
pub struct PlotArgs {
    /// URL or path of a run
    pub url: String,
    /// SVG file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// How the store is reached.
    #[command(flatten)]
    pub s3: S3Args,
}

/// Draws the curves of a run.
///
/// # Errors
/// The store's trouble, a run without metrics, or a file that cannot be written.
pub async fn plot(args: &PlotArgs) -> Result<(), Failure> {
    let url = resolve_run_url(&args.url)?;
    let run = Store::open_existing(&url.root, &args.s3.resolve()?)?.run(&url.run)?;
    let bytes = match run.get_file("metrics.jsonl", METRICS_BYTES_MAX).await {
        Err(StorageError::NotFound { .. }) => {
            return Err(Failure::new(Exit::Config, format!("{} has no metrics.jsonl: nothing to draw", run.url())));
        }
        other => other?,
    };
    let events = events(&String::from_utf8_lossy(&bytes));
    let svg = curves(run.name(), &events).map_err(|why| Failure::new(Exit::Config, format!("{}: {why}", run.url())))?;
    std::fs::write(&args.out, svg)
        .map_err(|error| Failure::new(Exit::Config, format!("cannot write --out {}: {error}", args.out.display())))
}

/// The events of a `metrics.jsonl`; a line that is none (cut off by a crash, or of a later version) is passed over.
fn events(text: &str) -> Vec<Event> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// One line of a panel.
struct Curve {
    name: String,
    points: Vec<(f64, f64)>,
    dots: bool,
}

impl Curve {
    fn line(name: &str, points: impl Iterator<Item = (f64, f64)>) -> Self {
        Self { name: name.to_owned(), points: points.filter(|p| p.1.is_finite()).collect(), dots: false }
    }
}

struct Panel {
    title: String,
    curves: Vec<Curve>,
    from_zero: bool,
}

/// The picture of a run called `name`.
///
/// # Errors
/// In words, when there is nothing to draw.
pub fn curves(name: &str, events: &[Event]) -> Result<String, String> {
    let ticks: Vec<&Tick> = events.iter().filter_map(|e| if let Event::Tick(t) = e { Some(t) } else { None }).collect();
    let qualities: Vec<&Quality> =
        events.iter().filter_map(|e| if let Event::Quality(q) = e { Some(q) } else { None }).collect();
    let end = ticks.iter().map(|t| kimg(t.images)).fold(0.0, f64::max);
    if ticks.is_empty() || end <= 0.0 {
        return Err("no tick has ended yet: nothing to draw".to_owned());
    }
    let metrics: BTreeSet<&str> = qualities.iter().map(|quality| quality.metric.as_str()).collect();
    let metrics = metrics.into_iter().map(|metric| measured(metric, &qualities));
    let panels: Vec<Panel> = std::iter::once(seen(&ticks))
        .chain(metrics)
        .chain([losses(&ticks), speed(&ticks)])
        .filter(|panel| panel.curves.iter().any(|curve| !curve.points.is_empty()))
        .collect();
    let mut svg = String::new();
    {
        let height = PANEL * panels.len() as u32 + 40;
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        let drawn = draw(&area, name, &panels, end).and_then(|()| area.present().map_err(|e| e.to_string()));
        drawn.map_err(|why| format!("the picture could not be drawn: {why}"))?;
    }
    Ok(svg)
}

fn kimg(images: u64) -> f64 {
    images as f64 / 1000.0
}

fn seen(ticks: &[&Tick]) -> Panel {
    let of = |value: fn(&Tick) -> f64| ticks.iter().map(move |t| (kimg(t.images), value(t)));
    Panel {
        title: "log2 of the resolution, and share of the new one in the image (alpha)".to_owned(),
        curves: vec![
            Curve::line("log2(px)", of(|t| f64::from(t.resolution).log2())),
            Curve::line("alpha", of(|t| t.alpha)),
        ],
        from_zero: true,
    }
}

/// A metric: of each thing that it judges and each level one line, the best so far, and what it is held against.
fn measured(metric: &str, qualities: &[&Quality]) -> Panel {
    let of_metric = || qualities.iter().copied().filter(|quality| quality.metric == metric);
    let judged: BTreeSet<(&str, u32)> =
        of_metric().flat_map(|q| q.levels.keys().map(|level| (q.of.as_str(), *level))).collect();
    let mut curves = Vec::new();
    for (of, level) in judged {
        let points = |value: fn(&Quality) -> &BTreeMap<u32, f64>| {
            let of_level = move |q: &Quality| Some((kimg(q.images), *value(q).get(&level)?));
            of_metric().filter(move |q| q.of == of).filter_map(of_level)
        };
        let name = format!("{of} {level} px").trim_start().to_owned();
        let better = if of_metric().any(Quality::grows) { f64::max } else { f64::min };
        let best =
            points(|q| &q.levels).filter(|point| point.1.is_finite()).scan(f64::NAN, move |best, (at, value)| {
                *best = better(*best, value);
                Some((at, *best))
            });
        curves.push(Curve { dots: true, ..Curve::line(&name, points(|q| &q.levels)) });
        if is_distance(metric) {
            curves.push(Curve::line(&format!("{name}, best so far"), best));
        }
        curves.push(Curve::line(&format!("{name}, real to real"), points(|q| &q.floor)));
        curves.push(Curve::line(&format!("{name}, nothing done"), points(|q| &q.untouched)));
    }
    curves.retain(|curve| !curve.points.is_empty());
    let features = of_metric().map(|q| q.features.as_str()).find(|name| !name.is_empty());
    let features = features.map_or_else(String::new, |name| format!(" ({name})"));
    Panel { title: format!("{}{features}", title(metric)), curves, from_zero: true }
}

/// Whether a metric says what is better.
fn is_distance(metric: &str) -> bool {
    ![names::DIVERSITY, names::CHANGE, names::LIKENESS].contains(&metric)
}

/// A metric in words.
fn title(metric: &str) -> String {
    let words = match metric {
        names::SWD => "sliced Wasserstein distance to the real images, x 1000",
        names::KID => "kernel distance of features to the real images (KID)",
        names::FRECHET => "Frechet distance of features to the real images",
        names::CYCLE => "mean absolute difference, there and back",
        names::TWIN_L1 => "mean absolute difference from the true image",
        names::TWIN_SSIM => "structural similarity to the true image (1 is equal)",
        names::DIVERSITY => "MS-SSIM between made images (1 is all alike)",
        names::CHANGE => "mean absolute difference between translation and input",
        names::LIKENESS => "correlation of brightness between translation and input",
        other => other,
    };
    words.to_owned()
}

fn losses(ticks: &[&Tick]) -> Panel {
    let names: BTreeSet<&String> =
        ticks.iter().flat_map(|t| t.stats.keys()).filter(|n| n.starts_with("loss/")).collect();
    let of =
        |name: &String| ticks.iter().filter_map(|t| Some((kimg(t.images), *t.stats.get(name)?))).collect::<Vec<_>>();
    let curves = names.into_iter().map(|name| Curve::line(name, of(name).into_iter())).collect();
    Panel { title: "losses, means over a tick".to_owned(), curves, from_zero: false }
}

fn speed(ticks: &[&Tick]) -> Panel {
    let rates = ticks.iter().map(|t| (kimg(t.images), t.img_per_sec));
    Panel { title: "images per second".to_owned(), curves: vec![Curve::line("img/s", rates)], from_zero: true }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw(area: &Area<'_>, name: &str, panels: &[Panel], end: f64) -> Result<(), String> {
    let text = |error: DrawingAreaErrorKind<std::io::Error>| error.to_string();
    area.fill(&WHITE).map_err(text)?;
    let titled = area.titled(name, ("sans-serif", 20)).map_err(text)?;
    for (place, panel) in titled.split_evenly((panels.len(), 1)).iter().zip(panels) {
        draw_panel(place, panel, end).map_err(text)?;
    }
    Ok(())
}

fn draw_panel(place: &Area<'_>, panel: &Panel, end: f64) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let values = panel.curves.iter().flat_map(|c| &c.points).map(|p| p.1);
    let (least, most) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
    let least = if panel.from_zero { least.min(0.0) } else { least };
    let margin = ((most - least) * 0.05).max(1e-9);
    let mut chart = ChartBuilder::on(place)
        .caption(&panel.title, ("sans-serif", 14))
        .margin(6)
        .x_label_area_size(30)
        .y_label_area_size(55)
        .build_cartesian_2d(0.0..end, (least - if panel.from_zero { 0.0 } else { margin })..(most + margin))?;
    chart.configure_mesh().x_desc("kimg").light_line_style(TRANSPARENT).bold_line_style(BLACK.mix(0.1)).draw()?;
    for (curve, colour) in panel.curves.iter().zip(COLOURS.iter().cycle()) {
        let colour = *colour;
        chart
            .draw_series(LineSeries::new(curve.points.iter().copied(), colour.stroke_width(2)))?
            .label(&curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        if curve.dots {
            chart.draw_series(curve.points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .draw()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tick(images: u64, loss: f64) -> Event {
        let stats = BTreeMap::from([("loss/d".to_owned(), loss), ("score/real".to_owned(), 1.0)]);
        Event::Tick(Tick { images, resolution: 8, alpha: 1.0, img_per_sec: 50.0, stats, ..Tick::default() })
    }

    #[test]
    fn a_run_becomes_a_picture_with_every_curve_named() {
        let quality = Quality {
            images: 2000,
            metric: "swd".to_owned(),
            count: 4,
            levels: BTreeMap::from([(16, 30.0)]),
            floor: BTreeMap::from([(16, 10.0)]),
            ..Quality::default()
        };
        let kid = |images, value| {
            let levels = BTreeMap::from([(64, value)]);
            let (metric, of, features) = (names::KID.to_owned(), "a2b".to_owned(), "net".to_owned());
            Event::Quality(Quality { images, metric, of, features, levels, ..Quality::default() })
        };
        let events = [tick(1000, 3.0), tick(2000, -1.0), Event::Quality(quality), kid(1000, 0.2), kid(2000, 0.1)];
        let svg = curves("faces", &events).unwrap();
        for word in [
            "faces",
            "Wasserstein",
            "16 px, real to real",
            "loss/d",
            "img/s",
            "alpha",
            "kimg",
            "a2b 64 px, best so far",
            "(net)",
        ] {
            assert!(svg.contains(word), "{word}");
        }
        assert!(!svg.contains("score/real") && !svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn what_is_not_finite_leaves_a_gap() {
        let svg = curves("x", &[tick(1000, f64::NAN), tick(2000, f64::INFINITY), tick(3000, 2.0)]).unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn a_run_that_has_just_begun_says_so() {
        assert!(curves("x", &[]).unwrap_err().contains("nothing to draw"));
        assert!(curves("x", &[tick(0, 1.0)]).unwrap_err().contains("nothing to draw"));
    }

    #[test]
    fn lines_that_are_no_events_are_passed_over() {
        let good = serde_json::to_string(&tick(1000, 1.0)).unwrap();
        let text = format!("{good}\n{{\"kind\":\"later\"}}\nnot json\n{}", &good[..good.len() / 2]);
        assert_eq!(events(&text), [tick(1000, 1.0)]);
    }
}
