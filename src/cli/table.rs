//! Tables with columns that line up, and colours where they help.

/// A horizontal line.
const RULE: &str = "\u{2500}";
/// Between two columns, and to the left of all.
const GAP: &str = "  ";

/// How a piece of text looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Look {
    /// As the rest.
    #[default]
    Plain,
    /// Less important.
    Faint,
    Good,
    Doubtful,
    Bad,
}

impl Look {
    /// What a terminal is told.
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Faint => "\x1b[2m",
            Self::Good => "\x1b[32m",
            Self::Doubtful => "\x1b[33m",
            Self::Bad => "\x1b[31m",
        }
    }

    /// Some text that looks so, if there are colours at all.
    pub(super) fn on(self, text: &str, colours: bool) -> String {
        match self.code() {
            code if colours && !code.is_empty() => format!("{code}{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}

/// Where the text of a column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// A table. Each row has a cell for each column.
pub(super) struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<(String, Look)>>,
}

impl Table {
    pub(super) fn new(columns: &[(&'static str, Side)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    pub(super) fn push(&mut self, row: Vec<(String, Look)>) {
        assert_eq!(row.len(), self.columns.len(), "a row has a cell for each column");
        self.rows.push(row);
    }

    /// The table as lines. Columns without anything in them are left out.
    pub(super) fn text(&self, colours: bool) -> String {
        let widths: Vec<_> = (0..self.columns.len()).map(|column| self.width(column)).collect();
        let heads = self.columns.iter().map(|(head, _)| (*head, Look::Plain));
        let mut text = self.line(&widths, heads, colours);
        let shown = widths.iter().filter(|width| **width > 0);
        let width: usize = shown.map(|width| width + GAP.len()).sum();
        text.push_str(&format!("{GAP}{}\n", RULE.repeat(width.saturating_sub(GAP.len()))));
        for row in &self.rows {
            let cells = row.iter().map(|(cell, look)| (cell.as_str(), *look));
            text.push_str(&self.line(&widths, cells, colours));
        }
        text
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[column].0.chars().count());
        match cells.max().unwrap_or(0) {
            0 => 0,
            width => width.max(self.columns[column].0.len()),
        }
    }

    fn line<'a>(
        &self,
        widths: &[usize],
        cells: impl Iterator<Item = (&'a str, Look)>,
        colours: bool,
    ) -> String {
        let mut line = String::new();
        for ((width, (_, side)), (cell, look)) in widths.iter().zip(&self.columns).zip(cells) {
            if *width == 0 {
                continue;
            }
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            let cell = look.on(cell, colours && !cell.is_empty());
            line.push_str(GAP);
            match side {
                Side::Left => line.extend([cell, padding]),
                Side::Right => line.extend([padding, cell]),
            }
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table =
            Table::new(&[("name", Side::Left), ("zone", Side::Left), ("keys", Side::Right)]);
        let cell = |text: &str, look| (text.to_owned(), look);
        for (name, keys, look) in [("\u{e4}", "12,345", Look::Good), ("long name", "1", Look::Bad)]
        {
            table.push(vec![cell(name, look), cell("", Look::Plain), cell(keys, Look::Plain)]);
        }
        table
    }

    #[test]
    fn columns_line_up_and_empty_ones_are_left_out() {
        let rule = RULE.repeat(17);
        let expected = format!(
            "  name         keys\n  {rule}\n  \u{e4}          12,345\n  long name       1\n"
        );
        assert_eq!(table().text(false), expected);
    }

    #[test]
    fn colours_take_no_place() {
        let text = table().text(true);
        assert!(text.contains("  \x1b[31mlong name\x1b[0m       1\n"), "{text:?}");
        let plain = ["\x1b[31m", "\x1b[32m", "\x1b[0m"]
            .iter()
            .fold(text, |text, code| text.replace(code, ""));
        assert_eq!(plain, table().text(false));
    }
}
