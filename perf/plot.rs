//! One SVG with two panels: the latency distribution (logarithmic) and IOPS over time with the longest latency of
//! each step.

use std::fmt::Write;

use hdrhistogram::Histogram;

use crate::worker::STEP_NS;

const WIDTH: f64 = 900.0;
const PANEL: f64 = 260.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 80.0;
const TOP: f64 = 40.0;
/// Points of the distribution curve.
const POINTS: usize = 400;

/// Number of I/Os and longest latency (ns) of each step.
pub fn draw(latency: &Histogram<u64>, steps: &[(u64, u64)]) -> String {
    let height = 2.0 * (PANEL + 2.0 * TOP);
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' font-family='sans-serif' \
         font-size='12'><rect width='100%' height='100%' fill='white'/>\n"
    );
    distribution(&mut svg, latency, TOP);
    over_time(&mut svg, steps, PANEL + 3.0 * TOP);
    svg.push_str("</svg>\n");
    svg
}

fn frame(svg: &mut String, top: f64, title: &str) {
    let width = WIDTH - LEFT - RIGHT;
    // Writing to a String cannot fail.
    let _ = writeln!(
        svg,
        "<text x='{LEFT}' y='{}'>{title}</text>\
         <rect x='{LEFT}' y='{top}' width='{width}' height='{PANEL}' fill='none' stroke='#888'/>",
        top - 10.0
    );
}

fn label(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = writeln!(svg, "<text x='{x:.1}' y='{y:.1}' text-anchor='{anchor}' fill='#444'>{text}</text>");
}

fn line(svg: &mut String, points: &[(f64, f64)], color: &str) {
    let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(
        svg,
        "<polyline points='{}' fill='none' stroke='{color}' stroke-width='1.5'/>",
        path.join(" ")
    );
}

fn microseconds(ns: f64) -> String {
    if ns < 1e6 { format!("{:.0} us", ns / 1e3) } else { format!("{:.1} ms", ns / 1e6) }
}

/// Share of I/Os (0 to 1) that took at most so long; latency to the right, logarithmic.
fn distribution(svg: &mut String, latency: &Histogram<u64>, top: f64) {
    frame(svg, top, "share of I/Os that took at most");
    if latency.is_empty() {
        return;
    }
    let (low, high) = (latency.min().max(1) as f64, (latency.max() as f64).max(latency.min() as f64 * 2.0));
    let width = WIDTH - LEFT - RIGHT;
    let x_of = |ns: f64| LEFT + width * (ns.max(low) / low).ln() / (high / low).ln();
    let y_of = |share: f64| top + PANEL * (1.0 - share);
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        label(svg, LEFT - 8.0, y_of(share) + 4.0, "end", &format!("{:.0} %", share * 100.0));
    }
    let mut tick = 10f64.powf(low.log10().floor());
    while tick <= high {
        if tick >= low {
            label(svg, x_of(tick), top + PANEL + 16.0, "middle", &microseconds(tick));
        }
        tick *= 10.0;
    }
    let points: Vec<(f64, f64)> = (0..=POINTS)
        .map(|n| {
            let share = n as f64 / POINTS as f64;
            (x_of(latency.value_at_quantile(share) as f64), y_of(share))
        })
        .collect();
    line(svg, &points, "#0060c0");
}

fn over_time(svg: &mut String, steps: &[(u64, u64)], top: f64) {
    frame(svg, top, "IOPS (blue) and longest latency of each step (red) over time");
    let per_second = 1e9 / STEP_NS as f64;
    let most = steps.iter().map(|s| s.0).max().unwrap_or(0).max(1) as f64;
    let longest = steps.iter().map(|s| s.1).max().unwrap_or(0).max(1) as f64;
    let width = WIDTH - LEFT - RIGHT;
    let x_of = |n: usize| LEFT + width * n as f64 / steps.len().max(2).saturating_sub(1) as f64;
    let y_of = |share: f64| top + PANEL * (1.0 - share);
    label(svg, LEFT - 8.0, y_of(1.0) + 4.0, "end", &format!("{:.0}", most * per_second));
    label(svg, LEFT - 8.0, y_of(0.0) + 4.0, "end", "0");
    label(svg, WIDTH - RIGHT + 8.0, y_of(1.0) + 4.0, "start", &microseconds(longest));
    let seconds = steps.len() as f64 / per_second;
    label(svg, WIDTH - RIGHT, top + PANEL + 16.0, "middle", &format!("{seconds:.1} s"));
    let curve = |value: &dyn Fn(&(u64, u64)) -> f64| -> Vec<(f64, f64)> {
        steps.iter().enumerate().map(|(n, s)| (x_of(n), y_of(value(s)))).collect()
    };
    line(svg, &curve(&|s| s.1 as f64 / longest), "#c03030");
    line(svg, &curve(&|s| s.0 as f64 / most), "#0060c0");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_well_formed_also_without_any_io() {
        let mut latency: Histogram<u64> = Histogram::new(3).expect("histogram");
        for steps in [vec![], vec![(10, 5000), (20, 80_000)]] {
            let svg = draw(&latency, &steps);
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            latency.record(20_000).expect("record");
        }
    }
}
