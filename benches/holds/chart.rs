//! The chart of a run: how each contender's rate grows.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::contenders::{
    BARE_TRANSACTION, BY_HAND, DISTRIBUTED_LOCK, IN_PROCESS, MUTEX, NO_HAND_OFF, Name, SESSIONS,
    SQLX, TRANSACTION, UNCONFIRMED,
};
use crate::growth::Curves;
use crate::statistics::whole;

const SIZE: (u32, u32) = (1280, 988);
const LEGEND_HEIGHT: u32 = 92;

/// On a ground of its own, so that it can be read on a light page and on a dark one.
const GROUND: RGBColor = WHITE;
const INK: RGBColor = RGBColor(36, 41, 47);
const GRID: RGBColor = RGBColor(225, 228, 232);

/// Told apart also by those who see few colours: the palette of Okabe and Ito.
const COLOURS: &[(Name, RGBColor)] = &[
    (MUTEX, RGBColor(120, 120, 120)),
    (BARE_TRANSACTION, RGBColor(150, 90, 40)),
    (IN_PROCESS, RGBColor(0, 0, 0)),
    (TRANSACTION, RGBColor(0, 114, 178)),
    (UNCONFIRMED, RGBColor(86, 180, 233)),
    (NO_HAND_OFF, RGBColor(240, 228, 66)),
    (SESSIONS, RGBColor(0, 158, 115)),
    (BY_HAND, RGBColor(213, 94, 0)),
    (SQLX, RGBColor(204, 121, 167)),
    (DISTRIBUTED_LOCK, RGBColor(230, 159, 0)),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// The chart as SVG.
pub fn drawn(curves: &[Curves]) -> String {
    let mut svg = String::new();
    draw(&mut svg, curves).expect("a string takes everything");
    svg
}

fn draw(svg: &mut String, curves: &[Curves]) -> Drawn {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&GROUND)?;
    let (top, panels) = area.split_vertically(LEGEND_HEIGHT);
    legend(&top)?;
    let panels = panels.split_evenly((2, 2));
    for (panel, curves) in panels.iter().zip(curves) {
        lines(panel, curves)?;
    }
    area.present()?;
    Ok(())
}

/// Every contender's colour, four to a row.
fn legend(area: &Area) -> Drawn {
    const COLUMN: i32 = 310;
    const ROW: i32 = 28;
    for (index, (name, colour)) in (0..).zip(COLOURS) {
        let (x, y) = (24 + index % 4 * COLUMN, 12 + index / 4 * ROW);
        let swatch = [(x, y), (x + 24, y + 12)];
        area.draw(&Rectangle::new(swatch, colour.filled()))?;
        area.draw(&Text::new(plain(name), (x + 32, y - 1), text(16)))?;
    }
    Ok(())
}

/// Rates along an axis, both logarithmic.
fn lines(area: &Area, curves: &Curves) -> Drawn {
    let points: Vec<_> = (curves.names().into_iter())
        .flat_map(|name| curves.of(name))
        .collect();
    let (left, right) = points
        .iter()
        .fold((f64::MAX, 1.0_f64), |(left, right), (x, _)| {
            (left.min(*x), right.max(*x))
        });
    let step = curves.step();
    let mut chart = ChartBuilder::on(area)
        .caption(curves.title(), text(18))
        .margin(16)
        .margin_right(48)
        .x_label_area_size(44)
        .y_label_area_size(88)
        .build_cartesian_2d(
            (left..right).log_scale().base(step),
            decades(points.iter().map(|(_, rate)| *rate)).log_scale(),
        )?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(INK)
        .label_style(text(14))
        .axis_desc_style(text(15))
        .x_desc(curves.axis)
        .y_desc("holds/s")
        .x_label_formatter(&|x| whole(*x))
        .y_label_formatter(&|y| whole(*y))
        .draw()?;
    for name in curves.names() {
        let style = colour(name).stroke_width(2);
        chart.draw_series(LineSeries::new(curves.of(name), style))?;
        let dots = curves.of(name);
        chart.draw_series(dots.map(|dot| Circle::new(dot, 3, colour(name).filled())))?;
    }
    Ok(())
}

/// From a power of ten to another, around all values.
fn decades(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = values.fold((f64::MAX, 1.0), |(low, high), value| {
        (value.min(low), value.max(high))
    });
    let low = low.min(high).max(1.0).log10().floor();
    10_f64.powf(low)..10_f64.powf(high.log10().ceil().max(low + 1.0))
}

fn colour(name: &str) -> RGBColor {
    let found = COLOURS.iter().find(|(of, _)| *of == name);
    found.map_or(INK, |(_, colour)| *colour)
}

fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

/// Without Markdown.
fn plain(name: &str) -> String {
    name.replace('`', "")
}
