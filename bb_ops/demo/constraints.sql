-- The booking application's foreign keys and indexes (demo), added after loading: many times faster than row by row.

ALTER TABLE barbershop_locations
    ADD FOREIGN KEY (manager_id) REFERENCES users,
    ADD FOREIGN KEY (owner_id) REFERENCES users;
ALTER TABLE barber_locations
    ADD FOREIGN KEY (barber_id) REFERENCES users,
    ADD FOREIGN KEY (location_id) REFERENCES barbershop_locations;
ALTER TABLE barber_profiles
    ADD FOREIGN KEY (user_id) REFERENCES users;
ALTER TABLE services
    ADD FOREIGN KEY (barber_id) REFERENCES users,
    ADD FOREIGN KEY (created_by_id) REFERENCES users;
ALTER TABLE clients
    ADD FOREIGN KEY (preferred_barber_id) REFERENCES users,
    ADD FOREIGN KEY (barber_id) REFERENCES users,
    ADD FOREIGN KEY (created_by_id) REFERENCES users;
ALTER TABLE appointments
    ADD FOREIGN KEY (user_id) REFERENCES users,
    ADD FOREIGN KEY (barber_id) REFERENCES users,
    ADD FOREIGN KEY (client_id) REFERENCES clients,
    ADD FOREIGN KEY (service_id) REFERENCES services,
    ADD FOREIGN KEY (organization_id) REFERENCES organizations;
ALTER TABLE payments
    ADD FOREIGN KEY (user_id) REFERENCES users,
    ADD FOREIGN KEY (appointment_id) REFERENCES appointments,
    ADD FOREIGN KEY (barber_id) REFERENCES users,
    ADD FOREIGN KEY (organization_id) REFERENCES organizations,
    ADD FOREIGN KEY (gift_certificate_id) REFERENCES gift_certificates;
ALTER TABLE refunds
    ADD FOREIGN KEY (payment_id) REFERENCES payments,
    ADD FOREIGN KEY (initiated_by_id) REFERENCES users;
ALTER TABLE payouts
    ADD FOREIGN KEY (barber_id) REFERENCES users;
ALTER TABLE notification_queue
    ADD FOREIGN KEY (user_id) REFERENCES users,
    ADD FOREIGN KEY (appointment_id) REFERENCES appointments;
ALTER TABLE user_consents
    ADD FOREIGN KEY (user_id) REFERENCES users ON DELETE CASCADE;
ALTER TABLE data_export_requests
    ADD FOREIGN KEY (user_id) REFERENCES users ON DELETE CASCADE;
ALTER TABLE data_processing_logs
    ADD FOREIGN KEY (user_id) REFERENCES users ON DELETE CASCADE;
ALTER TABLE legal_consent_audit
    ADD FOREIGN KEY (user_id) REFERENCES users ON DELETE CASCADE,
    ADD FOREIGN KEY (performed_by) REFERENCES users;
ALTER TABLE mfa_events
    ADD FOREIGN KEY (user_id) REFERENCES users ON DELETE CASCADE;

CREATE INDEX ix_users_unified_role ON users (unified_role);
CREATE INDEX ix_users_location_id ON users (location_id);
CREATE INDEX ix_clients_name ON clients (last_name, first_name);
CREATE INDEX ix_clients_barber_id ON clients (barber_id);
CREATE INDEX ix_appointments_barber_start ON appointments (barber_id, start_time);
CREATE INDEX ix_appointments_client_id ON appointments (client_id);
CREATE INDEX ix_appointments_user_id ON appointments (user_id);
CREATE INDEX ix_appointments_status ON appointments (status);
CREATE INDEX ix_appointments_created_at ON appointments (created_at);
CREATE INDEX ix_payments_appointment_id ON payments (appointment_id);
CREATE INDEX ix_payments_barber_created ON payments (barber_id, created_at);
CREATE INDEX ix_payments_status ON payments (status);
CREATE INDEX ix_payments_intent ON payments (stripe_payment_intent_id);
CREATE INDEX ix_refunds_payment_id ON refunds (payment_id);
CREATE INDEX ix_payouts_barber_period ON payouts (barber_id, period_start);
CREATE INDEX ix_guest_bookings_datetime ON guest_bookings (appointment_datetime);
CREATE INDEX ix_notification_queue_due ON notification_queue (scheduled_for) WHERE status = 'PENDING';
CREATE INDEX ix_notification_queue_appointment_id ON notification_queue (appointment_id);
CREATE INDEX ix_data_processing_logs_user_date ON data_processing_logs (user_id, processing_date);
CREATE INDEX ix_legal_consent_audit_user_id ON legal_consent_audit (user_id);
CREATE INDEX ix_mfa_events_user_created ON mfa_events (user_id, created_at);
CREATE INDEX ix_idempotency_keys_expires_at ON idempotency_keys (expires_at);
