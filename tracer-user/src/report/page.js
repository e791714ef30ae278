'use strict';
// Sorts tables and filters the records. The page is complete without it. A view can be linked to:
// #q=words&sort=column&down=1

const raw = document.getElementById('raw');
const query = document.getElementById('query');
const shown = document.getElementById('shown');
const number = new Intl.NumberFormat('en-US');
const view = { q: '', sort: '', down: '' };

function value(row, column) {
  const cell = row.cells[column];
  return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
}

function sort(table, column, down) {
  const body = table.tBodies[0];
  const order = (a, b) => {
    const [one, other] = [value(a, column), value(b, column)];
    const compared = typeof one === 'number' ? one - other : one.localeCompare(other, 'en', { numeric: true });
    return down ? -compared : compared;
  };
  body.append(...[...body.rows].sort(order));
  [...table.tHead.rows[0].cells].forEach((cell, at) => {
    if (at === column) cell.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    else cell.removeAttribute('aria-sort');
  });
}

function filter() {
  const words = view.q.toLowerCase().split(/\s+/).filter((word) => word !== '' && word !== '-');
  let [rows, drops] = [0, 0];
  for (const row of raw.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    const has = (word) => word.startsWith('-') ? !text.includes(word.slice(1)) : text.includes(word);
    row.hidden = !words.every(has);
    if (!row.hidden) {
      rows += 1;
      drops += value(row, 1);
    }
  }
  raw.classList.toggle('filtered', words.length > 0);
  shown.textContent = `${number.format(rows)} record${rows === 1 ? '' : 's'}, ${number.format(drops)} drop${drops === 1 ? '' : 's'}`;
}

function heads(table) {
  return [...table.tHead.rows[0].cells];
}

function remember() {
  const words = new URLSearchParams();
  for (const [name, text] of Object.entries(view)) if (text !== '') words.set(name, text);
  history.replaceState(null, '', `${words}` !== '' ? `#${words}` : '#records');
}

function follow() {
  const words = new URLSearchParams(location.hash.slice(1));
  if (!['q', 'sort', 'down'].some((name) => words.has(name))) return;
  for (const name of Object.keys(view)) view[name] = words.get(name) ?? '';
  query.value = view.q;
  filter();
  const column = heads(raw).findIndex((cell) => cell.textContent.toLowerCase() === view.sort.toLowerCase());
  if (column >= 0) sort(raw, column, view.down !== '');
  document.getElementById('records').scrollIntoView();
}

for (const table of document.querySelectorAll('table.sortable')) {
  heads(table).forEach((cell, column) => {
    if (cell.textContent === '' || cell.classList.contains('line')) return;
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = cell.textContent;
    button.addEventListener('click', () => {
      const before = cell.getAttribute('aria-sort');
      // Of numbers the largest are wanted first.
      const down = before === null ? cell.classList.contains('number') : before === 'ascending';
      sort(table, column, down);
      if (table === raw) {
        view.sort = cell.textContent.toLowerCase();
        view.down = down ? '1' : '';
        remember();
      }
    });
    cell.replaceChildren(button);
  });
}

if (raw !== null) {
  const form = document.getElementById('filter');
  form.hidden = false;
  form.addEventListener('submit', (event) => event.preventDefault());
  query.addEventListener('input', () => {
    view.q = query.value;
    filter();
    remember();
  });
  filter();
  follow();
  window.addEventListener('hashchange', follow);
}
