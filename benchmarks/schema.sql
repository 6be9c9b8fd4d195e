CREATE TABLE barbers (id int PRIMARY KEY, name text NOT NULL, hired_on date NOT NULL);
CREATE TABLE services (id int PRIMARY KEY, name text NOT NULL, price_cents int NOT NULL);
CREATE TABLE settings (key text PRIMARY KEY, value jsonb NOT NULL);
CREATE TABLE customers (
    id int NOT NULL, public_id uuid NOT NULL, full_name text NOT NULL, email text NOT NULL, phone text NOT NULL,
    created_at timestamptz NOT NULL, preferences jsonb NOT NULL
);
CREATE TABLE bookings (
    id bigint NOT NULL, public_id uuid NOT NULL, customer_id int NOT NULL, barber_id int NOT NULL,
    service_id int NOT NULL, status text NOT NULL, starts_at timestamptz NOT NULL, created_at timestamptz NOT NULL,
    price_cents int NOT NULL, notes text NOT NULL
);
CREATE TABLE payments (
    id bigint NOT NULL, booking_id bigint NOT NULL, amount_cents int NOT NULL, currency text NOT NULL,
    processor_id text NOT NULL, paid_at timestamptz NOT NULL, method text NOT NULL
);
INSERT INTO barbers SELECT n, 'barber ' || n, date '2020-01-01' + n FROM generate_series(1, 400) AS n;
INSERT INTO services SELECT n, 'service ' || n, 1500 + 100 * n FROM generate_series(1, 60) AS n;
INSERT INTO settings SELECT 'setting ' || n, jsonb_build_object('value', n) FROM generate_series(1, 200) AS n;
