//! Rounds of measurements, and what they say.

/// The middle value (of an even number, the mean of the middle two); NaN of none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value below which this part of the values lies, between neighbours linearly; NaN of none.
#[must_use]
pub fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = part.clamp(0.0, 1.0) * last as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (at - at.floor())
}

/// Nanoseconds a packet of one contender: one value for each round.
#[derive(Clone, Debug, Default)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// In the order of the rounds.
    pub rounds: Vec<f64>,
}

impl Column {
    /// What it adds to `bare`, round by round: neighbours in time share the machine's noise.
    #[must_use]
    pub fn added(&self, bare: &Self) -> Vec<f64> {
        self.rounds.iter().zip(&bare.rounds).map(|(own, bare)| own - bare).collect()
    }
}

/// How often a drop may cost what bpftrace adds.
pub const GOAL: f64 = 1.5;

/// Median of what `column` adds, by what `yardstick` adds.
#[must_use]
pub fn ratio(column: &Column, yardstick: &Column, bare: &Column) -> f64 {
    median(&column.added(bare)) / median(&yardstick.added(bare))
}

/// A Markdown table; the first column is the bare one, `yardstick` the one that ratios are of.
#[must_use]
pub fn table(columns: &[Column], yardstick: Option<usize>) -> String {
    let Some(bare) = columns.first() else { return String::new() };
    let yardstick = yardstick.and_then(|index| columns.get(index));
    let mut text = String::from(
        "| | ns a packet, median | quartiles | added by a drop, median | quartiles | of bpftrace's |\n\
         |---|---:|---:|---:|---:|---:|\n",
    );
    for (index, column) in columns.iter().enumerate() {
        let mut row =
            format!("| {} | {} | {} |", column.name, whole(median(&column.rounds)), span(&column.rounds));
        if index == 0 {
            row.push_str(" | | |");
        } else {
            let added = column.added(bare);
            let of = yardstick.map(|yardstick| format!("{:.2}", ratio(column, yardstick, bare)));
            row += &format!(
                " {} | {} | {} |",
                whole(median(&added)),
                span(&added),
                of.unwrap_or_else(|| "?".into())
            );
        }
        text += &row;
        text.push('\n');
    }
    text
}

/// Without decimals.
pub(super) fn whole(value: f64) -> String {
    format!("{value:.0}")
}

/// Lower and upper quartile.
pub(super) fn span(values: &[f64]) -> String {
    format!("{:.0} to {:.0}", quantile(values, 0.25), quantile(values, 0.75))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, rounds: &[f64]) -> Column {
        Column { name: name.to_owned(), rounds: rounds.to_vec() }
    }

    #[test]
    fn one_disturbed_round_does_not_move_the_result() {
        let bare = column("bare", &[800.0, 810.0, 2000.0, 805.0, 800.0]);
        let yardstick = column("bpftrace", &[900.0, 910.0, 2100.0, 9000.0, 900.0]);
        let own = column("droptrace", &[950.0, 960.0, 2150.0, 955.0, 950.0]);
        assert_eq!(median(&yardstick.added(&bare)), 100.0);
        assert_eq!(ratio(&own, &yardstick, &bare), 1.5);
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(quantile(&[4.0, 1.0, 3.0, 2.0], 0.5), 2.5);
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.25), 2.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_missing_yardstick_leaves_its_ratio_open() {
        let columns = [column("bare", &[800.0]), column("droptrace -o json", &[950.0])];
        let text = table(&columns, None);
        assert!(
            text.ends_with("| droptrace -o json | 950 | 950 to 950 | 150 | 150 to 150 | ? |\n"),
            "{text}"
        );
    }
}
