-- Believable demo data, made inside the server. Deterministic: every "random" choice is a hash of the row's number,
-- so the same size at the same instant gives the same rows. Names end in example.com, telephone numbers are the
-- fictional 555-01xx, addresses are from documentation ranges, "encrypted" columns only look so.
-- Each step between headings runs in a transaction of its own (data.py); the settings demo.* come from there.

-- step: functions
CREATE FUNCTION pg_temp.instant() RETURNS timestamp LANGUAGE sql IMMUTABLE
    RETURN current_setting('demo.instant')::timestamp;
CREATE FUNCTION pg_temp.scale() RETURNS numeric LANGUAGE sql IMMUTABLE
    RETURN current_setting('demo.scale')::numeric;
CREATE FUNCTION pg_temp.rows(in_a_year integer) RETURNS integer LANGUAGE sql IMMUTABLE
    RETURN greatest(1, round(in_a_year * pg_temp.scale()))::integer;
CREATE FUNCTION pg_temp.barbers() RETURNS integer LANGUAGE sql IMMUTABLE
    RETURN (20 * greatest(1, pg_temp.scale()))::integer;
CREATE FUNCTION pg_temp.locations() RETURNS integer LANGUAGE sql IMMUTABLE
    RETURN (3 * greatest(1, pg_temp.scale()))::integer;
CREATE FUNCTION pg_temp.users() RETURNS integer LANGUAGE sql IMMUTABLE
    RETURN greatest(pg_temp.rows(6500), 10 + pg_temp.barbers() + pg_temp.rows(6000));
-- A number in [0, 1) that depends only on the row and on what it is for.
CREATE FUNCTION pg_temp.u(i bigint, salt bigint) RETURNS double precision LANGUAGE sql IMMUTABLE
    RETURN (hashint8extended(i, salt + 20261124) & 9007199254740991)::double precision / 9007199254740992;
CREATE FUNCTION pg_temp.pick(i bigint, salt bigint, options text[]) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN options[1 + floor(pg_temp.u(i, salt) * cardinality(options))::integer];
CREATE FUNCTION pg_temp.first_name(i bigint) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN pg_temp.pick(i, 1, '{James,Maria,Robert,Aisha,Michael,Linh,David,Sofia,Carlos,Emma,Daniel,Olivia,Jamal,Grace,Anthony,Chloe,Kevin,Zoe,Marcus,Nora,Andre,Priya,Tyler,Hannah,Luis,Megan,Omar,Julia,Brandon,Fatima,Ethan,Camille,Darius,Yuki,Noah,Elena,Malik,Ruth,Victor,Ines}');
CREATE FUNCTION pg_temp.last_name(i bigint) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN pg_temp.pick(i, 2, '{Smith,Garcia,Johnson,Nguyen,Williams,Martinez,Brown,Kim,Jones,Patel,Davis,Rossi,Miller,Hassan,Wilson,Lopez,Moore,Chen,Taylor,Rivera,Anderson,Okafor,Thomas,Silva,Jackson,Cohen,White,Haddad,Harris,Novak,Clark,Mensah,Lewis,Schmidt,Walker,O''Brien,Young,Ali,King,Larsen}');
CREATE FUNCTION pg_temp.email(i bigint) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN lower(pg_temp.first_name(i) || '.' || replace(pg_temp.last_name(i), '''', '') || i || '@example.com');
CREATE FUNCTION pg_temp.phone(i bigint) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN '+1' || pg_temp.pick(i, 3, '{212,646,310,424,312,773}') || '55501' || lpad(((i * 37) % 100)::text, 2, '0');
CREATE FUNCTION pg_temp.ip(i bigint) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN pg_temp.pick(i, 4, '{192.0.2.,198.51.100.,203.0.113.}') || (1 + (i * 7919) % 254);
CREATE FUNCTION pg_temp.agent(i bigint) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN pg_temp.pick(i, 5, ARRAY[
        'Mozilla/5.0 (iPhone; CPU iPhone OS 19_1 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148 Safari/604.1',
        'Mozilla/5.0 (Linux; Android 16; Pixel 9) AppleWebKit/537.36 Chrome/141.0.0.0 Mobile Safari/537.36',
        'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 Version/19.0 Safari/605.1.15',
        'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/141.0.0.0 Safari/537.36']);
-- Looks like the application's "hash16|token" columns; nothing is encrypted in it.
CREATE FUNCTION pg_temp.sealed(plain text) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN left(md5(plain), 16) || '|gAAAAAB' || left(translate(encode(sha512(plain::bytea), 'base64'), E'+/=\n', '-_'), 64);
CREATE FUNCTION pg_temp.stripe(prefix text, i bigint) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN prefix || '_demo' || left(md5(prefix || i), 19);
CREATE FUNCTION pg_temp.has_payment(appointment bigint) RETURNS boolean LANGUAGE sql IMMUTABLE
    RETURN appointment % 25 NOT IN (7, 19); -- 23 of 25: 46k payments for 50k appointments
CREATE FUNCTION pg_temp.payment_status(appointment bigint) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN CASE WHEN pg_temp.u(appointment, 6) < 0.965 THEN 'completed' WHEN pg_temp.u(appointment, 6) < 0.985 THEN 'failed'
        WHEN pg_temp.u(appointment, 6) < 0.995 THEN 'refunded' ELSE 'pending' END;

-- step: users
INSERT INTO organizations (id, name, slug, email, phone, tax_id, billing_contact_email, created_at)
SELECT i, 'BookedBarber Demo Group ' || i, 'demo-group-' || i, 'office' || i || '@example.com', pg_temp.phone(i),
    '00-' || lpad(i::text, 7, '0'), 'billing' || i || '@example.com', pg_temp.instant() - interval '3 years'
FROM generate_series(1, pg_temp.locations() / 3) AS i;

INSERT INTO users (id, email, name, phone, hashed_password, role, unified_role, user_type, timezone, email_verified,
    stripe_account_id, stripe_account_status, commission_rate, location_id, lifetime_value, subscription_status, created_at)
SELECT i, pg_temp.email(i), pg_temp.first_name(i) || ' ' || pg_temp.last_name(i), pg_temp.phone(i),
    '$2b$12$' || left(translate(encode(sha512(('demo' || i)::bytea), 'base64'), E'+=\n', './'), 53),
    CASE WHEN i <= 2 THEN 'admin' WHEN i <= 10 + pg_temp.barbers() THEN 'barber' ELSE 'user' END,
    CASE WHEN i > 10 + pg_temp.barbers() THEN 'client' WHEN i > 10 THEN 'barber'
        ELSE (ARRAY['super_admin', 'platform_admin', 'enterprise_owner', 'shop_manager', 'shop_manager', 'shop_manager',
            'receptionist', 'receptionist', 'receptionist', 'shop_owner'])[i] END,
    CASE WHEN i > 10 + pg_temp.barbers() THEN 'client' ELSE 'staff' END,
    pg_temp.pick(i, 10, '{America/New_York,America/Los_Angeles,America/Chicago}'),
    i <= 10 + pg_temp.barbers() OR pg_temp.u(i, 11) < 0.9,
    CASE WHEN i BETWEEN 11 AND 10 + pg_temp.barbers() THEN pg_temp.stripe('acct', i) END,
    CASE WHEN i BETWEEN 11 AND 10 + pg_temp.barbers() THEN 'active' END,
    0.20,
    CASE WHEN i <= 10 + pg_temp.barbers() THEN 1 + i % pg_temp.locations() END,
    0, CASE WHEN i <= 10 + pg_temp.barbers() THEN 'active' ELSE 'trial' END,
    pg_temp.instant() - CASE WHEN i <= 10 + pg_temp.barbers() THEN interval '2 years'
        ELSE interval '370 days' + pg_temp.u(i, 12) * interval '300 days' END
FROM generate_series(1, pg_temp.users()) AS i;

-- step: shops
INSERT INTO barbershop_locations (id, name, code, address, city, state, zip_code, phone, email, status, compensation_model,
    total_chairs, active_chairs, manager_id, owner_id, business_hours, timezone, created_at)
SELECT i, (ARRAY['Downtown Flagship', 'Westside', 'Airport'])[1 + (i - 1) % 3]
        || CASE WHEN i > 3 THEN ' ' || (1 + (i - 1) / 3) ELSE '' END,
    (ARRAY['NYC', 'LAX', 'ORD'])[1 + (i - 1) % 3] || '-' || lpad(i::text, 3, '0'),
    (100 + i) || ' ' || (ARRAY['Example Avenue', 'Sample Boulevard', 'Demo Street'])[1 + (i - 1) % 3],
    (ARRAY['New York', 'Los Angeles', 'Chicago'])[1 + (i - 1) % 3], (ARRAY['NY', 'CA', 'IL'])[1 + (i - 1) % 3],
    (ARRAY['10001', '90025', '60666'])[1 + (i - 1) % 3], pg_temp.phone(i), 'shop' || i || '@example.com', 'ACTIVE',
    (ARRAY['COMMISSION', 'BOOTH_RENTAL', 'HYBRID'])[1 + (i - 1) % 3]::compensationmodel,
    (ARRAY[8, 6, 4])[1 + (i - 1) % 3], (ARRAY[8, 6, 4])[1 + (i - 1) % 3], 4 + (i - 1) % 3, 3,
    '{"monday": ["09:00", "18:00"], "tuesday": ["09:00", "18:00"], "wednesday": ["09:00", "18:00"], "thursday": ["09:00", "18:00"], "friday": ["09:00", "18:00"], "saturday": ["09:00", "18:00"], "sunday": null}',
    (ARRAY['America/New_York', 'America/Los_Angeles', 'America/Chicago'])[1 + (i - 1) % 3],
    pg_temp.instant() - interval '2 years'
FROM generate_series(1, pg_temp.locations()) AS i;

INSERT INTO barber_locations (barber_id, location_id, created_at)
SELECT id, location_id, created_at FROM users WHERE unified_role = 'barber' ORDER BY id;

INSERT INTO barber_profiles (user_id, bio, years_experience, specialties, certifications, hourly_rate, instagram_handle, created_at)
SELECT id, name || ' has cut hair for ' || 2 + id % 20 || ' years and likes '
        || pg_temp.pick(id, 20, '{quiet mornings,a clean fade,hot towel shaves,classic scissor work}') || '.',
    2 + id % 20, json_build_array(pg_temp.pick(id, 21, '{fades,beards,classic cuts}'), pg_temp.pick(id, 22, '{color,styling,shaves}')),
    '["state license"]', 40 + 5 * (id % 9), '@demo_barber_' || id, created_at
FROM users WHERE unified_role = 'barber' ORDER BY id;

-- Prices are multiples of 5, so a 20 % fee and the rest add up exactly in binary floating point.
INSERT INTO services (id, name, description, category, sku, base_price, min_price, max_price, duration_minutes,
    buffer_time_minutes, location_id, created_at, created_by_id)
SELECT i, (ARRAY['Classic', 'Skin Fade', 'Scissor', 'Signature', 'Express'])[1 + (i - 1) / 8] || ' '
        || (ARRAY['Haircut', 'Shave', 'Beard Trim', 'Scalp Treatment', 'Styling', 'Color', 'Cut and Beard', 'Kids Cut'])[1 + (i - 1) % 8],
    'Consultation, service and finish; demo service number ' || i || '.',
    (ARRAY['HAIRCUT', 'SHAVE', 'BEARD', 'HAIR_TREATMENT', 'STYLING', 'COLOR', 'PACKAGE', 'OTHER'])[1 + (i - 1) % 8]::servicecategoryenum,
    'SVC-' || lpad(i::text, 3, '0'), 20 + 5 * (i % 12), 15 + 5 * (i % 12), 30 + 5 * (i % 12), 15 + 15 * (i % 4), 0,
    1 + i % 3, pg_temp.instant() - interval '2 years', 3
FROM generate_series(1, 40) AS i;

-- step: appointments
CREATE TEMPORARY TABLE open_days AS
SELECT row_number() OVER (ORDER BY day) - 1 AS n, day::timestamp
FROM generate_series(date_trunc('day', pg_temp.instant()) - interval '364 days',
    date_trunc('day', pg_temp.instant()) + interval '9 days', interval '1 day') AS day
WHERE extract(isodow FROM day) <> 7;

-- Row i falls on open day n as number "place" of that day; a barber's places of one day are whole hours apart.
INSERT INTO appointments (id, user_id, barber_id, client_id, service_id, organization_id, service_name, start_time,
    duration_minutes, price, status, buffer_time_after, notes, google_event_id, created_timezone, created_at)
WITH size AS (
    SELECT pg_temp.rows(50000)::bigint AS total, count(*) AS days, pg_temp.barbers() AS barbers,
        ceil(pg_temp.rows(50000)::numeric / count(*) / pg_temp.barbers())::integer AS per_barber FROM open_days
), placed AS (
    SELECT i, days, barbers, per_barber, (i - 1) * days / total AS n,
        i - 1 - ((i - 1) * days / total * total + days - 1) / days AS place
    FROM size, generate_series(1, total) AS i
), timed AS (
    SELECT i, 11 + (place + n * 7) % barbers AS barber_id, 1 + floor(pg_temp.u(i, 30) * 40)::integer AS service_id,
        1 + floor(pg_temp.u(i, 31) * pg_temp.rows(6000))::integer AS client_id,
        day + make_interval(
            hours => (9 + place / barbers + floor(pg_temp.u(n * 1000 + (place + n * 7) % barbers, 32)
                * greatest(1, 9 - per_barber)))::integer,
            mins => ((place + n * 7) % barbers % 2 * 30)::integer) AS start_time
    FROM placed JOIN open_days USING (n)
)
SELECT i, 10 + pg_temp.barbers() + client_id, timed.barber_id, client_id, s.id, 1 + (timed.barber_id % (pg_temp.locations() / 3)), s.name,
    start_time, s.duration_minutes, s.base_price,
    CASE
        WHEN start_time > pg_temp.instant() THEN
            CASE WHEN NOT pg_temp.has_payment(i) OR pg_temp.payment_status(i) IN ('failed', 'pending') THEN 'pending'
                WHEN pg_temp.payment_status(i) = 'refunded' THEN 'cancelled'
                ELSE pg_temp.pick(i, 33, '{confirmed,scheduled}') END
        WHEN NOT pg_temp.has_payment(i) THEN pg_temp.pick(i, 34, '{cancelled,no_show}')
        WHEN pg_temp.payment_status(i) IN ('failed', 'refunded') THEN 'cancelled'
        WHEN start_time > pg_temp.instant() - interval '1 hour' THEN 'in_progress'
        ELSE 'completed' END,
    5 * (i % 3),
    CASE WHEN pg_temp.u(i, 35) < 0.35 THEN pg_temp.pick(i, 36, ARRAY['Prefers scissors over clippers.', 'Running about five minutes late.',
        'Low fade, keep the length on top.', 'Sensitive skin: use the unscented balm.', 'First visit, recommended by a friend.',
        'Please call on arrival, parking is difficult.', 'Same as last time.', 'Short on the sides, blend into the beard.']) END,
    CASE WHEN pg_temp.u(i, 37) < 0.5 THEN 'demo' || left(md5('event' || i), 22) END,
    pg_temp.pick(timed.barber_id, 10, '{America/New_York,America/Los_Angeles,America/Chicago}'),
    least(start_time - interval '15 minutes' - pg_temp.u(i, 38) * interval '14 days', pg_temp.instant() - pg_temp.u(i, 39) * interval '5 days')
FROM timed JOIN services AS s ON s.id = timed.service_id
ORDER BY i;

-- step: payments
INSERT INTO payments (id, user_id, appointment_id, barber_id, organization_id, amount, status, stripe_payment_id,
    stripe_payment_intent_id, platform_fee, barber_amount, commission_rate, refund_amount, refund_reason, refunded_at,
    stripe_refund_id, created_at, updated_at)
WITH paid AS (
    SELECT row_number() OVER (ORDER BY id) AS i, a.*, pg_temp.payment_status(id) AS payment,
        CASE WHEN start_time > pg_temp.instant() THEN created_at
            ELSE least(start_time + make_interval(mins => duration_minutes), pg_temp.instant()) END AS paid_at
    FROM appointments AS a WHERE pg_temp.has_payment(id)
)
SELECT i, user_id, id, barber_id, organization_id, price, payment, pg_temp.stripe('ch', i), pg_temp.stripe('pi', i),
    price * 20 / 100, price - price * 20 / 100, 0.20,
    CASE WHEN payment = 'refunded' THEN price ELSE 0 END,
    CASE WHEN payment = 'refunded' THEN pg_temp.pick(id, 40, '{requested_by_customer,barber_unavailable,duplicate,service_issue}') END,
    CASE WHEN payment = 'refunded' THEN least(paid_at + interval '1 day' + pg_temp.u(id, 41) * interval '2 days', pg_temp.instant()) END,
    CASE WHEN payment = 'refunded' THEN pg_temp.stripe('re', i) END,
    paid_at,
    CASE WHEN payment = 'refunded' THEN least(paid_at + interval '3 days', pg_temp.instant()) ELSE paid_at END
FROM paid ORDER BY i;

-- Every refunded payment has its completed refund; one in twelve has a failed attempt before it.
INSERT INTO refunds (payment_id, amount, reason, status, stripe_refund_id, initiated_by_id, created_at, processed_at)
SELECT id, refund_amount, refund_reason, attempt, CASE WHEN attempt = 'completed' THEN stripe_refund_id END, 7 + id % 3,
    refunded_at - CASE attempt WHEN 'failed' THEN interval '6 hours' ELSE interval '10 minutes' END,
    CASE WHEN attempt = 'completed' THEN refunded_at END
FROM payments CROSS JOIN unnest(ARRAY['failed', 'completed']) AS attempt
WHERE status = 'refunded' AND (attempt = 'completed' OR pg_temp.u(id, 42) < 1 / 12.0)
ORDER BY refunded_at, attempt DESC;

-- A payout is what a barber earned in a week; small worlds keep only the last weeks.
INSERT INTO payouts (barber_id, amount, status, period_start, period_end, payment_count, stripe_payout_id,
    stripe_transfer_id, created_at, processed_at)
SELECT barber_id, sum(barber_amount), CASE WHEN week + interval '7 days' > pg_temp.instant() THEN 'pending' ELSE 'completed' END,
    week, week + interval '7 days', count(*), pg_temp.stripe('po', barber_id * 1000 + extract(week FROM week)::integer),
    pg_temp.stripe('tr', barber_id * 1000 + extract(week FROM week)::integer), week + interval '7 days 3 hours',
    CASE WHEN week + interval '8 days' <= pg_temp.instant() THEN week + interval '8 days' END
FROM (SELECT *, date_trunc('week', created_at) AS week FROM payments WHERE status = 'completed') AS earned
WHERE week >= date_trunc('week', pg_temp.instant()) - least(52, ceil(52 * pg_temp.scale()))::integer * interval '7 days'
GROUP BY barber_id, week ORDER BY week, barber_id;

-- step: clients
INSERT INTO clients (id, first_name, last_name, email, phone, date_of_birth, customer_type, total_visits, total_spent,
    average_ticket, no_show_count, cancellation_count, last_visit_date, notes, marketing_enabled, email_opt_in, sms_opt_in,
    preferred_barber_id, barber_id, created_by_id, location_id, created_at, updated_at)
WITH history AS (
    SELECT a.client_id, count(*) FILTER (WHERE a.status = 'completed') AS visits,
        count(*) FILTER (WHERE a.status = 'no_show') AS no_shows, count(*) FILTER (WHERE a.status = 'cancelled') AS cancellations,
        coalesce(sum(p.amount) FILTER (WHERE p.status = 'completed'), 0) AS spent,
        count(*) FILTER (WHERE p.status = 'completed') AS tickets,
        max(a.start_time) FILTER (WHERE a.status = 'completed') AS last_visit, min(a.created_at) AS first_booking
    FROM appointments AS a LEFT JOIN payments AS p ON p.appointment_id = a.id GROUP BY a.client_id
)
SELECT i, pg_temp.first_name(u.id), pg_temp.last_name(u.id), pg_temp.sealed(u.email), pg_temp.sealed(u.phone),
    date '1950-01-01' + floor(pg_temp.u(i, 50) * 20000)::integer,
    CASE WHEN coalesce(visits, 0) <= 1 THEN 'new' WHEN spent > 600 THEN 'vip'
        WHEN last_visit < pg_temp.instant() - interval '120 days' THEN 'at_risk' ELSE 'returning' END,
    coalesce(visits, 0), coalesce(spent, 0), CASE WHEN tickets > 0 THEN round((spent / tickets)::numeric, 2) ELSE 0 END,
    coalesce(no_shows, 0), coalesce(cancellations, 0), last_visit,
    CASE WHEN pg_temp.u(i, 51) < 0.2 THEN pg_temp.sealed('note ' || i) END,
    pg_temp.u(i, 52) < 0.7, pg_temp.u(i, 53) < 0.8, pg_temp.u(i, 54) < 0.6,
    11 + i % pg_temp.barbers(), 11 + i % pg_temp.barbers(), 7 + i % 3, 1 + i % pg_temp.locations(),
    least(coalesce(first_booking, pg_temp.instant()), pg_temp.instant() - pg_temp.u(i, 55) * interval '365 days'),
    coalesce(last_visit, pg_temp.instant() - interval '1 day')
FROM generate_series(1, pg_temp.rows(6000)) AS i
JOIN users AS u ON u.id = 10 + pg_temp.barbers() + i
LEFT JOIN history ON client_id = i
ORDER BY i;

UPDATE users SET lifetime_value = total_spent
FROM clients WHERE users.id = 10 + pg_temp.barbers() + clients.id AND total_spent > 0;

INSERT INTO gift_certificates (id, code, amount, balance, status, purchaser_name, purchaser_email, recipient_name,
    recipient_email, message, valid_from, valid_until, stripe_payment_intent_id, created_at, used_at)
SELECT i, 'GIFT-' || upper(left(md5('gift' || i), 10)), 25 * (1 + i % 4),
    CASE WHEN i % 4 = 0 THEN 0 ELSE 25 * (1 + i % 4) END, CASE WHEN i % 4 = 0 THEN 'used' ELSE 'active' END,
    pg_temp.first_name(i * 2) || ' ' || pg_temp.last_name(i * 2), pg_temp.email(i * 2),
    pg_temp.first_name(i * 3) || ' ' || pg_temp.last_name(i * 3), pg_temp.email(i * 3),
    pg_temp.pick(i, 56, '{Happy birthday!,Thank you for everything.,Enjoy a fresh cut.,Congratulations!}'),
    sold, sold + interval '1 year', pg_temp.stripe('pi', -i), sold, CASE WHEN i % 4 = 0 THEN sold + interval '5 days' END
FROM (SELECT i, pg_temp.instant() - interval '6 days' - pg_temp.u(i, 57) * interval '300 days' AS sold
    FROM generate_series(1, pg_temp.rows(400)) AS i) AS gifts;

INSERT INTO guest_bookings (id, guest_name, guest_email, guest_phone, organization_id, barber_id, service_id,
    appointment_datetime, duration_minutes, service_price, deposit_amount, status, confirmation_code, payment_intent_id,
    payment_status, marketing_consent, ip_address, user_agent, created_at)
SELECT i, pg_temp.first_name(-i) || ' ' || pg_temp.last_name(-i), 'guest' || i || '@example.com', pg_temp.phone(i), 1,
    11 + i % pg_temp.barbers(), s.id, booked + interval '3 days', s.duration_minutes, s.base_price, s.base_price / 5,
    pg_temp.pick(i, 58, '{confirmed,confirmed,completed,completed,completed,cancelled,pending}'), 'BB' || upper(left(md5('guest' || i), 8)),
    pg_temp.stripe('pi', -1000000 - i), pg_temp.pick(i, 59, '{completed,completed,completed,failed,pending}'), pg_temp.u(i, 60) < 0.3,
    pg_temp.ip(i), pg_temp.agent(i), booked
FROM (SELECT i, date_trunc('hour', pg_temp.instant() - pg_temp.u(i, 61) * interval '360 days') AS booked, 1 + i % 40 AS service_id
    FROM generate_series(1, pg_temp.rows(2000)) AS i) AS guests
JOIN services AS s ON s.id = service_id ORDER BY i;

-- step: notifications
INSERT INTO notification_queue (id, user_id, appointment_id, notification_type, template_name, recipient, subject, body,
    status, scheduled_for, sent_at, attempts, error_message, created_at, updated_at)
WITH due AS (
    SELECT (a.id - 1) * 3 + kind AS i, kind, a.*, CASE kind WHEN 1 THEN a.created_at
        WHEN 2 THEN greatest(start_time - interval '24 hours', a.created_at) ELSE greatest(start_time - interval '2 hours', a.created_at) END AS due_at
    FROM appointments AS a CROSS JOIN generate_series(1, 3) AS kind
), judged AS (
    SELECT *, CASE WHEN kind > 1 AND status = 'cancelled' THEN 'CANCELLED' WHEN due_at > pg_temp.instant() THEN 'PENDING'
        WHEN pg_temp.u(i, 70) < 0.01 THEN 'FAILED' ELSE 'SENT' END::notificationstatus AS state FROM due
)
SELECT j.i, j.user_id, j.id, CASE kind WHEN 3 THEN 'sms' ELSE 'email' END,
    (ARRAY['booking_confirmation', 'reminder_24h', 'reminder_2h'])[kind],
    CASE kind WHEN 3 THEN u.phone ELSE u.email END,
    CASE kind WHEN 1 THEN 'Your appointment is booked' WHEN 2 THEN 'See you tomorrow' ELSE 'See you soon' END,
    'Hi ' || split_part(u.name, ' ', 1) || ', ' || CASE kind WHEN 1 THEN 'we have booked ' ELSE 'this is a reminder of ' END
        || j.service_name || ' on ' || to_char(j.start_time, 'FMDay, DD Month "at" HH24:MI')
        || '. Please let us know at least 24 hours ahead if you need another time. Reference BB-' || j.id || '.',
    state, due_at, CASE WHEN state = 'SENT' THEN due_at + pg_temp.u(j.i, 71) * interval '5 minutes' END,
    CASE state WHEN 'SENT' THEN 1 WHEN 'FAILED' THEN 3 ELSE 0 END,
    CASE WHEN state = 'FAILED' THEN pg_temp.pick(j.i, 72, '{mailbox unavailable,carrier rejected the number,provider timed out}') END,
    j.created_at, greatest(j.created_at, least(due_at, pg_temp.instant()))
FROM judged AS j JOIN users AS u ON u.id = j.user_id
ORDER BY j.i;

-- step: consents
INSERT INTO user_consents (id, user_id, consent_type, status, consent_date, withdrawal_date, ip_address, user_agent, version,
    created_at, updated_at)
SELECT c.i, u.id, (enum_range(NULL::consenttype))[1 + (c.i - 1) / pg_temp.users()],
    CASE WHEN withdrawn THEN 'withdrawn' WHEN c.i > 2 * pg_temp.users() AND pg_temp.u(c.i, 80) < 0.2 THEN 'denied'
        ELSE 'granted' END::consentstatus,
    u.created_at, CASE WHEN withdrawn THEN u.created_at + interval '90 days' END, pg_temp.ip(u.id), pg_temp.agent(u.id), '2.1',
    u.created_at, CASE WHEN withdrawn THEN u.created_at + interval '90 days' ELSE u.created_at END
FROM (SELECT i, i > 2 * pg_temp.users() AND pg_temp.u(i, 81) < 0.05 AS withdrawn FROM generate_series(1, pg_temp.rows(20000)) AS i) AS c
JOIN users AS u ON u.id = 1 + (c.i - 1) % pg_temp.users()
ORDER BY c.i;

-- The first audit row of each consent tells that it was given; later rows tell of changes.
INSERT INTO legal_consent_audit (id, user_id, consent_id, action, consent_type, old_status, new_status, reason,
    audit_metadata, ip_address, user_agent, performed_by, "timestamp")
SELECT a.i, c.user_id, c.id, CASE WHEN later THEN 'update' ELSE 'create' END, c.consent_type::text,
    CASE WHEN later THEN 'pending' END, CASE WHEN later THEN c.status::text ELSE 'granted' END,
    CASE WHEN later THEN 'changed in account settings' ELSE 'given at registration' END,
    json_build_object('source', CASE WHEN later THEN 'settings' ELSE 'registration' END, 'version', c.version),
    c.ip_address, c.user_agent, c.user_id, c.created_at + CASE WHEN later THEN interval '90 days' ELSE interval '0' END
FROM (SELECT i, i > pg_temp.rows(20000) AS later FROM generate_series(1, pg_temp.rows(25000)) AS i) AS a
JOIN user_consents AS c ON c.id = 1 + (a.i - 1) % pg_temp.rows(20000)
ORDER BY a.i;

INSERT INTO data_export_requests (user_id, request_id, status, requested_at, completed_at, expires_at, file_size_bytes, format, ip_address)
SELECT 11 + i * 5 % (pg_temp.users() - 10), 'exp_' || md5('export' || i), CASE WHEN i % 10 = 0 THEN 'expired' ELSE 'completed' END::exportstatus,
    asked, asked + interval '2 hours', asked + interval '30 days', 20000 + i * 731, 'json', pg_temp.ip(i)
FROM (SELECT i, pg_temp.instant() - interval '1 day' - pg_temp.u(i, 82) * interval '300 days' AS asked
    FROM generate_series(1, pg_temp.rows(60)) AS i) AS requests;

-- step: events
INSERT INTO data_processing_logs (id, user_id, purpose, operation, data_categories, legal_basis, retention_period_days,
    third_party_involved, processing_date, ip_address, created_at)
SELECT i, 1 + floor(pg_temp.u(i, 90) * pg_temp.users())::integer, purpose::processingpurpose,
    CASE purpose WHEN 'payment_processing' THEN 'charge' WHEN 'marketing' THEN 'send_campaign' WHEN 'analytics' THEN 'aggregate_visits'
        ELSE 'manage_booking' END,
    CASE purpose WHEN 'payment_processing' THEN '["contact", "transaction"]' WHEN 'marketing' THEN '["contact", "preferences"]'
        ELSE '["contact", "booking"]' END::json,
    CASE purpose WHEN 'marketing' THEN 'consent' WHEN 'analytics' THEN 'legitimate_interest' ELSE 'contract' END,
    CASE purpose WHEN 'marketing' THEN 730 WHEN 'analytics' THEN 730 ELSE 2555 END, purpose = 'payment_processing', happened, pg_temp.ip(i), happened
FROM (SELECT i, pg_temp.pick(i, 91, '{service_delivery,service_delivery,payment_processing,payment_processing,marketing,analytics}') AS purpose,
        pg_temp.instant() - (1 - i / pg_temp.rows(60000)::double precision) * interval '365 days' AS happened
    FROM generate_series(1, pg_temp.rows(60000)) AS i) AS logs;

INSERT INTO mfa_events (id, user_id, event_type, event_status, event_details, ip_address, user_agent, device_fingerprint, created_at)
SELECT i, user_id, pg_temp.pick(i, 92, '{login,login,login,login,totp_verify,backup_code_used,device_trusted}'),
    CASE WHEN pg_temp.u(i, 93) < 0.05 THEN 'failure' ELSE 'success' END,
    CASE WHEN pg_temp.u(i, 93) < 0.05 THEN 'code did not match' ELSE 'verified' END,
    pg_temp.ip(user_id), pg_temp.agent(user_id), md5('device' || user_id),
    pg_temp.instant() - (1 - i / pg_temp.rows(30000)::double precision) * interval '365 days'
FROM (SELECT i, 1 + floor(pg_temp.u(i, 94) * pg_temp.users())::integer AS user_id FROM generate_series(1, pg_temp.rows(30000)) AS i) AS events;

INSERT INTO idempotency_keys (id, key, operation_type, user_id, request_hash, response_data, created_at, expires_at)
SELECT id, 'demo-' || md5('key' || id), 'create_booking', user_id, encode(sha256(('request' || id)::bytea), 'hex'),
    json_build_object('appointment_id', appointment_id, 'payment_id', id, 'amount', amount, 'status', status),
    created_at, created_at + interval '24 hours'
FROM payments ORDER BY id;

-- step: sequences
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
        EXECUTE format('SELECT setval(pg_get_serial_sequence(%L, ''id''), max(id)) FROM %I', name, name);
    END LOOP;
END $$;
